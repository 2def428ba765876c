//! Tensor maps: what tells a tensor copy where a matrix lies and how its boxes come to shared memory. The driver's are 128 opaque
//! bytes that only hardware reads; these are 128 bytes of our own, under the same rules.

/// How 16-byte chunks of a box change places in shared memory: bits of a chunk's address are flipped by higher ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    None,
    /// Within 32 bytes, by bit 7 of the address.
    B32,
    /// Within 64 bytes, by bits 7 and 8.
    B64,
    /// Within 128 bytes, by bits 7 to 9.
    B128,
}

impl Swizzle {
    /// Bytes that chunks stay within; no box may be wider. None where chunks keep their places.
    pub fn span(self) -> Option<u32> {
        match self {
            Swizzle::None => None,
            Swizzle::B32 => Some(32),
            Swizzle::B64 => Some(64),
            Swizzle::B128 => Some(128),
        }
    }

    /// Where the byte at this address goes.
    pub(crate) fn apply(self, address: u64) -> u64 {
        let flips = u64::from(self.span().unwrap_or(16) / 16 - 1);
        address ^ (address >> 7 & flips) << 4
    }
}

/// A matrix in global memory, rows of elements, and the box that one copy takes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub address: u64,
    /// 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// Elements of a row, and rows. What a box takes from outside them is zero.
    pub extent: [u64; 2],
    /// From row to row.
    pub row_bytes: u64,
    /// Elements of a box's row, and its rows.
    pub box_extent: [u32; 2],
    pub swizzle: Swizzle,
}

const MAGIC: u64 = u64::from_le_bytes(*b"2d map 1");

impl TensorMap {
    /// Bytes of a box in shared memory.
    pub fn box_bytes(&self) -> u32 {
        self.box_extent[0] * self.box_extent[1] * self.element_bytes
    }

    /// The map as a kernel is given it.
    ///
    /// # Errors
    /// What the driver would refuse too: a clause that names the value and the rule.
    pub fn encode(&self) -> Result<[u8; 128], String> {
        self.check()?;
        let swizzle = u64::from(self.swizzle.span().unwrap_or(0));
        let words = [
            MAGIC,
            self.address,
            self.element_bytes.into(),
            self.extent[0],
            self.extent[1],
            self.row_bytes,
            self.box_extent[0].into(),
            self.box_extent[1].into(),
            swizzle,
        ];
        let mut bytes = [0; 128];
        for (at, word) in bytes.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        Ok(bytes)
    }

    /// None where the bytes are no map.
    pub(crate) fn decode(bytes: &[u8]) -> Option<TensorMap> {
        let word = |index: usize| {
            let at = bytes.get(8 * index..8 * index + 8)?;
            Some(u64::from_le_bytes(at.try_into().ok()?))
        };
        let small = |index: usize| u32::try_from(word(index)?).ok();
        if word(0)? != MAGIC {
            return None;
        }
        let swizzle = match word(8)? {
            0 => Swizzle::None,
            32 => Swizzle::B32,
            64 => Swizzle::B64,
            128 => Swizzle::B128,
            _ => return None,
        };
        let map = TensorMap {
            address: word(1)?,
            element_bytes: small(2)?,
            extent: [word(3)?, word(4)?],
            row_bytes: word(5)?,
            box_extent: [small(6)?, small(7)?],
            swizzle,
        };
        map.check().is_ok().then_some(map)
    }

    /// CUDA driver API, `cuTensorMapEncodeTiled`.
    fn check(&self) -> Result<(), String> {
        let rule = |holds: bool, what: String| if holds { Ok(()) } else { Err(what) };
        let bytes = u64::from(self.element_bytes);
        rule(
            matches!(bytes, 1 | 2 | 4 | 8),
            format!("elements of {bytes} bytes; there are 1, 2, 4 and 8"),
        )?;
        rule(
            self.address.is_multiple_of(16),
            format!(
                "the tensor is at 0x{:x}, not a multiple of 16 bytes",
                self.address
            ),
        )?;
        rule(
            self.row_bytes.is_multiple_of(16) && self.row_bytes < 1 << 40,
            format!(
                "rows are {} bytes apart; a multiple of 16 below 2^40 is needed",
                self.row_bytes
            ),
        )?;
        for (extent, within) in self.extent.iter().zip(self.box_extent) {
            rule(
                (1..=1 << 32).contains(extent),
                format!("an extent of {extent} elements; there are 1 to 2^32"),
            )?;
            rule(
                (1..=256).contains(&within),
                format!("a box of {within} elements; there are 1 to 256"),
            )?;
        }
        let width = u64::from(self.box_extent[0]) * bytes;
        rule(
            width.is_multiple_of(16),
            format!("a box's row has {width} bytes, not a multiple of 16"),
        )?;
        match self.swizzle.span() {
            Some(span) => rule(
                width <= span.into(),
                format!(
                    "a box's row has {width} bytes, more than the {span} that the swizzle spans"
                ),
            ),
            None => Ok(()),
        }
    }
}
