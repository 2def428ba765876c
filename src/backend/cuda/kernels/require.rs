//! What arguments must satisfy, each as a clause that names the argument, its value and the rule.

use super::super::launch::DevicePtr;

/// Bytes that vector accesses are aligned to.
pub const VECTOR_BYTES: u64 = 16;

pub fn positive(name: &str, value: u32) -> Result<(), String> {
    if value == 0 {
        return Err(format!("{name} is 0: there is nothing to launch"));
    }
    Ok(())
}

pub fn at_most(name: &str, value: u32, most: u32) -> Result<(), String> {
    if value > most {
        return Err(format!("{name} is {value}, more than {most}"));
    }
    Ok(())
}

pub fn multiple(name: &str, value: u64, of: u64) -> Result<(), String> {
    if !value.is_multiple_of(of) {
        return Err(format!("{name} is {value}, not a multiple of {of}"));
    }
    Ok(())
}

pub fn given(name: &str, ptr: DevicePtr) -> Result<(), String> {
    if ptr.is_null() {
        return Err(format!("{name} is null"));
    }
    Ok(())
}

/// `ptr` is given and a multiple of `bytes`.
pub fn aligned(name: &str, ptr: DevicePtr, bytes: u64) -> Result<(), String> {
    given(name, ptr)?;
    if !ptr.is_aligned(bytes) {
        return Err(format!(
            "{name} is at {:#x}, not a multiple of {bytes} bytes",
            ptr.0
        ));
    }
    Ok(())
}

/// Rows of `width` elements that are read or written as vectors: aligned at both ends, and not overlapping.
pub fn vector_rows(
    name: &str,
    ptr: DevicePtr,
    stride: u64,
    width: u32,
    element_bytes: usize,
) -> Result<(), String> {
    aligned(name, ptr, VECTOR_BYTES)?;
    multiple(
        &format!("{name}'s row stride"),
        stride,
        VECTOR_BYTES / element_bytes as u64,
    )?;
    if stride < u64::from(width) {
        return Err(format!(
            "{name}'s row stride is {stride}, less than its width {width}"
        ));
    }
    Ok(())
}
