//! What a device reaches at most, measured: products, copies within it, and copies to and from the host. A job's rates are read
//! beside these.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::driver::{Driver, Pitched};
use super::gemm::{GemmCall, GemmShape};
use super::launch::{DevicePtr, Dtype, LaunchError, Launcher};
use super::probe::Registered;
use super::{GemmChoice, Gpu};

/// A device's rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceCeilings {
    /// The device's name.
    pub device: String,
    /// What multiplied, with its version.
    pub gemm_library: String,
    /// FLOP/s of a square product, by the dtype of its operands and result.
    pub gemm_flops: BTreeMap<String, f64>,
    /// Bytes a second of copies within the device, those read and those written counted both.
    pub copy_bytes_per_s: f64,
    pub upload_bytes_per_s: f64,
    /// Device to host, into plain memory.
    pub copy_out_bytes_per_s: f64,
    /// Device to host, into memory that is registered with the driver; `None` where none can be.
    pub copy_out_registered_bytes_per_s: Option<f64>,
}

/// How large what is timed is.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Rows and columns of the product's matrices in 16 bits, and in f32.
    pub product: u32,
    pub product_f32: u32,
    /// Bytes of a copy.
    pub copy: usize,
    /// Runs that are timed together.
    pub repeats: u32,
}

/// For a GPU.
pub const FULL: Sizes = Sizes {
    product: 8192,
    product_f32: 4096,
    copy: 512 << 20,
    repeats: 10,
};

/// For the interpreter: the figures mean nothing.
pub const TINY: Sizes = Sizes {
    product: 64,
    product_f32: 64,
    copy: 1 << 16,
    repeats: 1,
};

/// Times a GPU.
///
/// # Errors
/// No such GPU, less free memory than some 1.5 GB, and whatever the driver says.
pub fn of_gpu(ordinal: u32, gemm: GemmChoice) -> Result<DeviceCeilings, LaunchError> {
    let mut gpu = Gpu::open(ordinal, gemm)?;
    let mut found = measure(&mut gpu, &FULL)?;
    let mut memory = vec![0_u8; FULL.copy];
    // Some machines let no memory be locked: that is no error, but what `None` says.
    if let Ok(mut registered) = Registered::new(&mut memory) {
        let from = gpu.alloc(FULL.copy)?;
        let seconds = copy_out(&mut gpu, from, registered.bytes_mut(), FULL.repeats)?;
        gpu.free(from)?;
        found.copy_out_registered_bytes_per_s = Some(FULL.copy as f64 / seconds);
    }
    Ok(found)
}

/// Times a device by the wall clock, from one wait to the next.
///
/// # Errors
/// The driver's.
pub fn measure(driver: &mut dyn Driver, sizes: &Sizes) -> Result<DeviceCeilings, LaunchError> {
    let mut gemm_flops = BTreeMap::new();
    for (dtype, side) in [
        (Dtype::BF16, sizes.product),
        (Dtype::F16, sizes.product),
        (Dtype::F32, sizes.product_f32),
    ] {
        let rate = product(driver, dtype, side, sizes.repeats)?;
        gemm_flops.insert(dtype.word().to_owned(), rate);
    }
    let mut host = vec![0x3c_u8; sizes.copy];
    let (from, to) = (driver.alloc(sizes.copy)?, driver.alloc(sizes.copy)?);
    let uploading = timed(driver, sizes.repeats, |driver| {
        driver.upload_in_order(from, &host)
    })?;
    let within = timed(driver, sizes.repeats, |driver| {
        let rows = |at| Pitched { at, pitch: 1 << 16 };
        driver.copy_rows(rows(from), rows(to), 1 << 16, sizes.copy >> 16)
    })?;
    let out = copy_out(driver, from, &mut host, sizes.repeats)?;
    driver.free(from)?;
    driver.free(to)?;
    let bytes = sizes.copy as f64;
    Ok(DeviceCeilings {
        device: driver.name(),
        gemm_library: driver.gemm_library(),
        gemm_flops,
        copy_bytes_per_s: 2.0 * bytes / within,
        upload_bytes_per_s: bytes / uploading,
        copy_out_bytes_per_s: bytes / out,
        copy_out_registered_bytes_per_s: None,
    })
}

/// FLOP/s of x · Wᵀ with matrices of `side` rows and columns.
fn product(
    driver: &mut dyn Driver,
    dtype: Dtype,
    side: u32,
    repeats: u32,
) -> Result<f64, LaunchError> {
    let bytes = side as usize * side as usize * dtype.bytes();
    let places = [
        driver.alloc(bytes)?,
        driver.alloc(bytes)?,
        driver.alloc(bytes)?,
    ];
    let [x, weight, out] = places;
    // A GPU multiplies zeros faster than numbers, because it draws less power.
    fill_with_noise(driver, x, bytes, dtype)?;
    fill_with_noise(driver, weight, bytes, dtype)?;
    let shape = GemmShape {
        m: side,
        n: side,
        k: side,
        input: dtype,
        output: dtype,
    };
    let call = GemmCall {
        x,
        weight,
        out,
        x_stride: side,
        weight_stride: side,
        out_stride: side,
    };
    let algorithm = driver.choose_gemm(&shape)?;
    let seconds = timed(driver, repeats, |driver| {
        driver.multiply(&algorithm, &shape, &call)
    })?;
    for place in places {
        driver.free(place)?;
    }
    Ok(2.0 * f64::from(side).powi(3) / seconds)
}

/// Numbers between 1 and 2 of either sign, the same few again and again.
fn fill_with_noise(
    driver: &mut dyn Driver,
    at: DevicePtr,
    bytes: usize,
    dtype: Dtype,
) -> Result<(), LaunchError> {
    const PIECE: usize = 1 << 20;
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let piece: Vec<u8> = match dtype {
        Dtype::F32 => (0..PIECE / 4)
            .flat_map(|_| (0x3f80_0000 | (noise() & 0x7f_ffff) | (noise() & 1) << 31).to_le_bytes())
            .collect(),
        Dtype::BF16 | Dtype::F16 => {
            let (one, mantissa) = if dtype == Dtype::BF16 {
                (0x3f80, 0x7f)
            } else {
                (0x3c00, 0x3ff)
            };
            (0..PIECE / 2)
                .flat_map(|_| {
                    (one | (noise() & mantissa) as u16 | ((noise() & 1) as u16) << 15).to_le_bytes()
                })
                .collect()
        }
    };
    for first in (0..bytes).step_by(PIECE) {
        driver.upload_in_order(at.offset(first), &piece[..PIECE.min(bytes - first)])?;
    }
    driver.synchronize()
}

/// Seconds of a copy to `into`.
fn copy_out(
    driver: &mut dyn Driver,
    from: DevicePtr,
    into: &mut [u8],
    repeats: u32,
) -> Result<f64, LaunchError> {
    driver.fill(from, 1, into.len())?;
    let (at, bytes) = (into.as_mut_ptr(), into.len());
    timed(driver, repeats, |driver| {
        // SAFETY: `into` is borrowed for as long as this function, and the fence is waited for in it.
        unsafe { driver.copy_out(from, at, bytes)? };
        let fence = driver.fence()?;
        driver.wait(fence)
    })
}

/// Seconds of one run: the best of three rounds of `repeats`, after one that loads what is to be loaded.
fn timed(
    driver: &mut dyn Driver,
    repeats: u32,
    mut run: impl FnMut(&mut dyn Driver) -> Result<(), LaunchError>,
) -> Result<f64, LaunchError> {
    run(driver)?;
    driver.synchronize()?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        for _ in 0..repeats {
            run(driver)?;
        }
        driver.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64() / f64::from(repeats));
    }
    Ok(best)
}
