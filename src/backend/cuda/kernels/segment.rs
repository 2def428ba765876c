//! The columns of a selection, cut into pieces for one warp each.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

/// Columns that one warp takes at most. As in `kernels/common.cuh`.
pub const SEGMENT_MAX: usize = 1024;

/// Columns `[first, first + len)` of a row, which are `[at, at + len)` of the selected row.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Segment {
    pub first: u32,
    pub len: u32,
    pub at: u32,
    pub _pad: u32,
}

/// The column ranges, in order, laid end to end: the table that `gather` and `edit` take (on the device, 16-byte aligned).
pub fn segments(columns: &[Range<usize>]) -> Vec<Segment> {
    let mut table = Vec::new();
    let mut at = 0;
    for range in columns {
        for first in range.clone().step_by(SEGMENT_MAX) {
            let len = SEGMENT_MAX.min(range.end - first);
            table.push(Segment {
                first: first as u32,
                len: len as u32,
                at: at as u32,
                _pad: 0,
            });
            at += len;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_and_laid_end_to_end() {
        let table = segments(&[10..10, 3..1030, 0..2]);
        let parts: Vec<_> = table.iter().map(|s| (s.first, s.len, s.at)).collect();
        assert_eq!(parts, [(3, 1024, 0), (1027, 3, 1024), (0, 2, 1027)]);
    }
}
