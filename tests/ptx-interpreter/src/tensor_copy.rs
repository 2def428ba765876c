//! `cp.async.bulk.tensor`: a box of a matrix to shared memory, told to an mbarrier. The bytes are there when the instruction is
//! executed, and belong to the mbarrier's phase: only who knows that the phase has ended may touch them.

use crate::access::{Failure, check_aligned, parts, resolve, settle};
use crate::finding::{FindingKind, InLane, Outcome, fault};
use crate::machine::Machine;
use crate::memory::PARAM_WINDOW;
use crate::program::{Address, Slot, Space};
use crate::race::Actor;
use crate::shadow::{CHUNK, Phase};
use crate::tensor_map::TensorMap;
use crate::warp::lanes;

/// What a copy's place in shared memory is aligned to.
const BOX_ALIGNMENT: usize = 128;
const MAP_BYTES: usize = 128;

#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorCopy {
    pub to: Address,
    pub map: Address,
    /// Column and row of the box's first element, signed.
    pub at: [Slot; 2],
    pub barrier: Address,
}

/// One lane's copy.
struct BoxCopy {
    map: TensorMap,
    /// The first element: column and row.
    at: [i64; 2],
    to: u64,
    phase: Phase,
}

impl Machine<'_> {
    pub fn tensor_copy(&mut self, w: usize, pc: u32, m: u32, copy: &TensorCopy) -> Outcome<()> {
        let registers = &self.warps[w].registers;
        let (to, maps) = (resolve(registers, copy.to), resolve(registers, copy.map));
        let barriers = resolve(registers, copy.barrier);
        let [columns, rows] = copy.at.map(|slot| *registers.row32(slot));
        for lane in lanes(m) {
            check_aligned(to[lane], BOX_ALIGNMENT).in_lane(lane)?;
            let map = self.tensor_map(maps[lane]).in_lane(lane)?;
            let (barrier, phase) = self
                .mbarrier_of_copy(w, pc, lane, barriers[lane])
                .in_lane(lane)?;
            let at = [columns[lane], rows[lane]].map(|at| i64::from(at as i32));
            let copy = BoxCopy {
                map,
                at,
                to: to[lane],
                phase,
            };
            self.copy_box(w, pc, lane, &copy)?;
            self.bytes_came(barrier, map.box_bytes());
        }
        Ok(())
    }

    /// The map at a generic address: in the kernel's parameters, or in global or constant memory.
    fn tensor_map(&self, address: u64) -> Outcome<TensorMap> {
        check_aligned(address, 64)?;
        let (space, address) = settle(Space::Generic, address);
        let bytes = match space {
            Space::Param => {
                let at = (address - PARAM_WINDOW) as usize;
                self.params.get(at..at + MAP_BYTES)
            }
            Space::Global => {
                let allocation = self.global.index_of(address);
                let allocation = allocation.map(|index| &self.global.allocations[index]);
                allocation.and_then(|allocation| {
                    let at = (address - allocation.start) as usize;
                    allocation.region.as_ref()?.data.get(at..at + MAP_BYTES)
                })
            }
            _ => None,
        };
        bytes.and_then(TensorMap::decode).ok_or_else(|| {
            let what = format!("what lies at 0x{address:x} is no tensor map");
            fault(FindingKind::OutOfBounds, what)
        })
    }

    fn copy_box(&mut self, w: usize, pc: u32, lane: usize, copy: &BoxCopy) -> Outcome<()> {
        let map = &copy.map;
        let width = u64::from(map.box_extent[0] * map.element_bytes);
        for row in 0..map.box_extent[1].into() {
            for at in (0..width).step_by(CHUNK) {
                let value = self.chunk_of_box(w, pc, lane, copy, row, at)?;
                let to = map.swizzle.apply(copy.to + row * width + at);
                let stored = {
                    parts!(self, w, pc, false => _warp, view, actor);
                    let actor = Actor {
                        lane: lane as u16,
                        ..actor
                    };
                    view.shared
                        .locate(to, CHUNK as u64)
                        .map_err(Failure::from)
                        .and_then(|offset| view.store_copied(offset, value, &actor, copy.phase))
                };
                stored.map_err(|failure| self.explain(failure, lane, CHUNK, true))?;
            }
        }
        Ok(())
    }

    /// 16 bytes of a box, `at` bytes into one of its rows; zeros outside the matrix.
    fn chunk_of_box(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        copy: &BoxCopy,
        row: u64,
        at: u64,
    ) -> Outcome<u128> {
        let map = &copy.map;
        let bytes = u64::from(map.element_bytes);
        let inside = |at: i64, extent: u64| u64::try_from(at).is_ok_and(|at| at < extent);
        let y = copy.at[1] + row as i64;
        if !inside(y, map.extent[1]) {
            return Ok(0);
        }
        let x = copy.at[0] + (at / bytes) as i64;
        let elements = CHUNK as u64 / bytes;
        let whole = inside(x, map.extent[0]) && inside(x + elements as i64 - 1, map.extent[0]);
        let start = |x: i64| map.address + y as u64 * map.row_bytes + x as u64 * bytes;
        let (count, step) = if whole && start(x).is_multiple_of(CHUNK as u64) {
            (1, CHUNK)
        } else {
            (elements as usize, bytes as usize)
        };
        let mut value = 0u128;
        for i in 0..count {
            let x = x + (i as u64 * elements / count as u64) as i64;
            if !inside(x, map.extent[0]) {
                continue;
            }
            let loaded = {
                parts!(self, w, pc, false => _warp, view, actor);
                let actor = Actor {
                    lane: lane as u16,
                    ..actor
                };
                view.load_global(start(x), step, &actor)
            };
            let loaded = loaded.map_err(|failure| self.explain(failure, lane, step, false))?;
            value |= loaded << (8 * step * i);
            self.stats.global_read += step as u64;
        }
        Ok(value)
    }
}
