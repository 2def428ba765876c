//! Operations of the lanes that a member mask names: shuffles, votes, matches, reductions, `bar.warp.sync`.

use crate::alu::apply_int;
use crate::finding::{FindingKind, InLane, Outcome, fault};
use crate::machine::Machine;
use crate::program::{Collective, ShflMode, Slot, VoteMode};
use crate::registers::{LANES, Registers, write};
use crate::warp::lanes;

impl Machine<'_> {
    /// Runs the operation for each group of lanes that is complete; answers the lanes that must wait for others.
    pub fn collective(
        &mut self,
        w: usize,
        m: u32,
        what: &Collective,
        member_mask: Slot,
    ) -> Outcome<u32> {
        let masks = *self.warps[w].registers.row32(member_mask);
        let live = self.warps[w].live;
        let (mut todo, mut stay) = (m, 0);
        while todo != 0 {
            let first = todo.trailing_zeros() as usize;
            let members = masks[first];
            let group = lanes(todo)
                .filter(|&lane| masks[lane] == members)
                .fold(0, |group, lane| group | 1 << lane);
            todo &= !group;
            if let Some(lane) = lanes(group & !members).next() {
                let what = format!("lane {lane} is not in its own member mask 0x{members:08x}");
                return Err(fault(FindingKind::InactiveLane, what)).in_lane(lane);
            }
            if members & live & !group != 0 {
                stay |= group;
                continue;
            }
            run(&mut self.warps[w].registers, group, members, what)?;
            let warp = &mut self.warps[w];
            warp.order.warp_sync(group, warp.live, &mut self.clock);
        }
        Ok(stay)
    }
}

fn run(registers: &mut Registers, group: u32, members: u32, what: &Collective) -> Outcome<()> {
    match *what {
        Collective::Barrier => {}
        Collective::Shfl {
            mode,
            d,
            p,
            a,
            b,
            c,
        } => shfl(registers, group, members, mode, (d, p), (a, b, c))?,
        Collective::Vote { mode, d, a } => {
            let yes = registers.pred(a) & group;
            let bit = |holds: bool| if holds { u32::MAX } else { 0 };
            match mode {
                VoteMode::Ballot => write(registers, group, d, &[yes; LANES]),
                VoteMode::All => registers.set_pred(d, group, bit(yes == group)),
                VoteMode::Any => registers.set_pred(d, group, bit(yes != 0)),
                VoteMode::Uni => registers.set_pred(d, group, bit(yes == group || yes == 0)),
            }
        }
        Collective::MatchAny { d, a, wide } => {
            let values = values(registers, a, wide);
            let same = |lane: usize| {
                lanes(group)
                    .filter(|&other| values[other] == values[lane])
                    .map(|o| 1u32 << o)
                    .sum()
            };
            let out: [u32; LANES] = std::array::from_fn(same);
            write(registers, group, d, &out);
        }
        Collective::MatchAll { d, p, a, wide } => {
            let values = values(registers, a, wide);
            let first = values[group.trailing_zeros() as usize];
            let all = lanes(group).all(|lane| values[lane] == first);
            write(registers, group, d, &[if all { group } else { 0 }; LANES]);
            if let Some(p) = p {
                registers.set_pred(p, group, if all { u32::MAX } else { 0 });
            }
        }
        Collective::Redux { op, ty, d, a } => {
            let row = registers.row32(a);
            let total = lanes(group)
                .map(|lane| u64::from(row[lane]))
                .reduce(|a, b| apply_int(op, ty, a, b));
            write(registers, group, d, &[total.unwrap_or(0) as u32; LANES]);
        }
    }
    Ok(())
}

fn values(registers: &Registers, a: Slot, wide: bool) -> [u64; LANES] {
    if wide {
        *registers.row64(a)
    } else {
        registers.row32(a).map(u64::from)
    }
}

fn shfl(
    registers: &mut Registers,
    group: u32,
    members: u32,
    mode: ShflMode,
    (d, p): (Slot, Option<Slot>),
    (a, b, c): (Slot, Slot, Slot),
) -> Outcome<()> {
    let (a, b, c) = (
        *registers.row32(a),
        *registers.row32(b),
        *registers.row32(c),
    );
    let mut out = [0; LANES];
    let mut valid = 0;
    for lane in lanes(group) {
        let (by, clamp, segment) = (
            (b[lane] & 31) as i32,
            (c[lane] & 31) as i32,
            (c[lane] >> 8 & 31) as i32,
        );
        let here = lane as i32;
        let (min, max) = (here & segment, here & segment | clamp & !segment);
        let (source, inside) = match mode {
            ShflMode::Up => (here - by, here - by >= max),
            ShflMode::Down => (here + by, here + by <= max),
            ShflMode::Bfly => (here ^ by, here ^ by <= max),
            ShflMode::Idx => (min | by & !segment, min | by & !segment <= max),
        };
        let source = if inside { source as usize & 31 } else { lane };
        if inside {
            valid |= 1 << lane;
        }
        if group >> source & 1 == 0 {
            let why = if members >> source & 1 == 0 {
                "is not in the member mask"
            } else {
                "has ended"
            };
            let what = format!(
                "lane {lane} reads the value of lane {source}, which {why} (0x{members:08x})"
            );
            return Err(fault(FindingKind::InactiveLane, what)).in_lane(lane);
        }
        out[lane] = a[source];
    }
    write(registers, group, d, &out);
    if let Some(p) = p {
        registers.set_pred(p, group, valid);
    }
    Ok(())
}
