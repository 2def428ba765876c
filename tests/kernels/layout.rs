//! Rows in memory as an engine keeps them: slices of wider rows, poison in between.

use super::harness::{Element, is_poison};
use bytemuck::Pod;

/// `rows` rows of `width` elements, `stride` apart, the first `offset` into the buffer.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub rows: usize,
    pub width: usize,
    pub stride: usize,
    pub offset: usize,
}

impl Layout {
    pub fn packed(rows: usize, width: usize) -> Layout {
        Layout::with_gaps(rows, width, 0)
    }

    /// `gap` elements between rows, as many before the first.
    pub fn with_gaps(rows: usize, width: usize, gap: usize) -> Layout {
        Layout {
            rows,
            width,
            stride: width + gap,
            offset: gap,
        }
    }

    /// Elements of the buffer.
    pub fn len(&self) -> usize {
        self.offset + self.rows * self.stride
    }

    /// The buffer that holds the rows of `x`.
    pub fn lay<T: Element>(&self, x: &[T]) -> Vec<T> {
        assert_eq!(x.len(), self.rows * self.width);
        let mut buffer = vec![poison(); self.len()];
        for (r, row) in x.chunks_exact(self.width).enumerate() {
            let at = self.offset + r * self.stride;
            buffer[at..at + self.width].copy_from_slice(row);
        }
        buffer
    }

    /// The rows that the buffer holds; what lies between them must be as it was.
    #[track_caller]
    pub fn take<T: Element>(&self, buffer: &[T]) -> Vec<T> {
        assert_eq!(buffer.len(), self.len());
        let mut rows = Vec::new();
        for (i, x) in buffer.iter().enumerate() {
            let inside = i >= self.offset && (i - self.offset) % self.stride.max(1) < self.width;
            if inside {
                rows.push(*x);
            } else {
                assert!(is_poison(x), "element {i} between the rows was written");
            }
        }
        rows
    }
}

/// All bits set, as in a canvas of the harness.
pub fn poison<T: Pod>() -> T {
    let mut element = T::zeroed();
    bytemuck::bytes_of_mut(&mut element).fill(0xff);
    element
}

/// x as `T` holds it.
pub fn rounded<T: Element>(x: f64) -> f64 {
    T::round(x).wide()
}

/// Every element has the wanted bits.
#[track_caller]
pub fn assert_same_bits<T: Element>(what: &str, got: &[T], want: &[T]) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!(
            got.same_bits(want),
            "{what}: element {i} is {got:?}, should be {want:?}"
        );
    }
}

/// |got − want| ≤ limit · max(|want|, floor) for every element.
#[track_caller]
pub fn assert_near<T: Element>(what: &str, got: &[T], want: &[f64], limit: f64, floor: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let off = (got.wide() - want).abs() / want.abs().max(floor);
        assert!(
            off <= limit || got.wide() == want,
            "{what}: element {i} is {got:?}, should be {want}: off by {off:.1e}, at most {limit:.0e} allowed"
        );
    }
}
