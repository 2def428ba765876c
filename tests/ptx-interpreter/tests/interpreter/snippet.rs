//! A few lines of PTX, run by one warp, a row of inputs per lane.

use ptx_interpreter::{Device, Finding, Launch, Module, Schedule};

pub const HEADER: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n";

/// One block of `threads`.
pub fn one_block(threads: u32) -> Launch {
    Launch {
        grid: [1, 1, 1],
        block: [threads, 1, 1],
        dynamic_shared: 0,
        schedule: Schedule::Forward,
    }
}

/// Arguments, 8 bytes each.
pub fn args(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A kernel `k(in, out)` around `body`, which finds its lane's inputs in %a, %b, %c, %e (32 bits), %A, %B, %C, %E (64) and
/// %ha, %hb, %hc (16), and leaves its result in %D.
fn kernel(body: &str) -> String {
    format!(
        "{HEADER}.visible .entry k(.param .u64 pin, .param .u64 pout)
{{
    .reg .pred %p, %q, %s;
    .reg .b16 %ha, %hb, %hc, %hd;
    .reg .b32 %a, %b, %c, %d, %e, %lane, %t<16>;
    .reg .b64 %A, %B, %C, %D, %E, %in, %out, %off, %T<8>;
    ld.param.u64 %in, [pin];
    ld.param.u64 %out, [pout];
    mov.u32 %lane, %tid.x;
    mul.wide.u32 %off, %lane, 32;
    add.s64 %in, %in, %off;
    ld.global.v2.u64 {{%A, %B}}, [%in];
    ld.global.v2.u64 {{%C, %E}}, [%in+16];
    cvt.u32.u64 %a, %A;
    cvt.u32.u64 %b, %B;
    cvt.u32.u64 %c, %C;
    cvt.u32.u64 %e, %E;
    cvt.u16.u64 %ha, %A;
    cvt.u16.u64 %hb, %B;
    cvt.u16.u64 %hc, %C;
    {body}
    mul.wide.u32 %off, %lane, 8;
    add.s64 %out, %out, %off;
    st.global.u64 [%out], %D;
    ret;
}}"
    )
}

/// The results of each row's lane, or what was found.
pub fn try_rows(body: &str, rows: &[[u64; 4]]) -> Result<Vec<u64>, Finding> {
    let module = Module::parse(&kernel(body), "snippet").unwrap_or_else(|error| panic!("{error}"));
    let mut device = Device::new();
    let (input, output) = (device.alloc(32 * rows.len()), device.alloc(8 * rows.len()));
    let bytes: Vec<u8> = rows
        .iter()
        .flatten()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    device.write(input, &bytes).expect("inputs fit");
    device.launch(
        &module,
        "k",
        &one_block(rows.len() as u32),
        &args(&[input, output]),
    )?;
    let bytes = device
        .read(output, 8 * rows.len())
        .expect("every lane stores a result");
    Ok(bytes
        .chunks_exact(8)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("8 bytes")))
        .collect())
}

pub fn rows64(body: &str, rows: &[[u64; 4]]) -> Vec<u64> {
    try_rows(body, rows).unwrap_or_else(|finding| panic!("{finding}"))
}

/// As [`rows64`], for a result in %d.
pub fn rows32(body: &str, rows: &[[u64; 4]]) -> Vec<u32> {
    rows64(&format!("{body}\n cvt.u64.u32 %D, %d;"), rows)
        .into_iter()
        .map(|value| value as u32)
        .collect()
}

/// As [`rows64`], for a result in %hd.
pub fn rows16(body: &str, rows: &[[u64; 4]]) -> Vec<u16> {
    rows64(&format!("{body}\n cvt.u64.u16 %D, %hd;"), rows)
        .into_iter()
        .map(|value| value as u16)
        .collect()
}

pub fn one32(body: &str, a: u32, b: u32, c: u32) -> u32 {
    rows32(body, &[[a.into(), b.into(), c.into(), 0]])[0]
}

pub fn one64(body: &str, a: u64, b: u64, c: u64) -> u64 {
    rows64(body, &[[a, b, c, 0]])[0]
}

pub fn one16(body: &str, a: u16, b: u16, c: u16) -> u16 {
    rows16(body, &[[a.into(), b.into(), c.into(), 0]])[0]
}
