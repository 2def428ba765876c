//! Fragment layouts against plain matrix products: a value's place is computed here from row and column, by the
//! formulas of the PTX manual, independently of the interpreter's own loops.

use ptx_interpreter::{Device, Module};

use crate::snippet::{HEADER, args, one_block};

/// A small integer pattern that every format holds exactly.
fn value(row: usize, column: usize, salt: usize) -> f32 {
    ((row * 7 + column * 3 + salt) % 13) as f32 - 6.0
}

fn bf16(value: f32) -> u32 {
    value.to_bits() >> 16
}

fn f16(value: f32) -> u32 {
    let bits = value.to_bits();
    if value == 0.0 {
        0
    } else {
        (bits >> 31 << 15) | ((bits >> 23 & 0xff) - 112) << 10 | bits >> 13 & 0x3ff
    }
}

/// Runs `mma` on one warp, each lane with its registers; returns each lane's results.
fn run(
    instruction: &str,
    (a, b, c): (usize, usize, usize),
    registers: &[Vec<u32>],
) -> Vec<Vec<u32>> {
    let names = |stem: &str, count: usize| {
        (0..count)
            .map(|i| format!("%{stem}{i}"))
            .collect::<Vec<_>>()
    };
    let (a, b, c) = (names("a", a), names("b", b), names("c", c));
    let inputs: Vec<String> = a.iter().chain(&b).chain(&c).cloned().collect();
    let loads: String = inputs
        .iter()
        .enumerate()
        .map(|(i, name)| format!("ld.global.u32 {name}, [%in+{}];\n", 4 * i))
        .collect();
    let stores: String = (0..c.len())
        .map(|i| format!("st.global.u32 [%out+{}], %d{i};\n", 4 * i))
        .collect();
    let d = names("d", c.len());
    let text = format!(
        "{HEADER}.visible .entry k(.param .u64 pin, .param .u64 pout) {{
            .reg .b32 %a<4>, %b<4>, %c<4>, %d<4>, %t; .reg .b64 %in, %out, %off;
            ld.param.u64 %in, [pin]; ld.param.u64 %out, [pout];
            mov.u32 %t, %tid.x; mul.wide.u32 %off, %t, {}; add.s64 %in, %in, %off;
            mul.wide.u32 %off, %t, {}; add.s64 %out, %out, %off;
            {loads}
            {instruction} {{{}}}, {{{}}}, {{{}}}, {{{}}};
            {stores} ret; }}",
        4 * inputs.len(),
        4 * c.len(),
        d.join(", "),
        a.join(", "),
        b.join(", "),
        c.join(", "),
    );
    let module = Module::parse(&text, "mma").expect("well-formed");
    let mut device = Device::new();
    let (input, output) = (
        device.alloc(128 * inputs.len()),
        device.alloc(128 * c.len()),
    );
    let bytes: Vec<u8> = registers
        .iter()
        .flatten()
        .flat_map(|r| r.to_le_bytes())
        .collect();
    device.write(input, &bytes).expect("fits");
    device
        .launch(&module, "k", &one_block(32), &args(&[input, output]))
        .unwrap_or_else(|f| panic!("{f}"));
    let bytes = device.read(output, 128 * c.len()).expect("stored");
    let words: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|w| u32::from_le_bytes(w.try_into().expect("4 bytes")))
        .collect();
    words.chunks_exact(c.len()).map(<[u32]>::to_vec).collect()
}

fn product(row: usize, column: usize, k: usize) -> f32 {
    (0..k)
        .map(|i| value(row, i, 1) * value(i, column, 5))
        .sum::<f32>()
        + value(row, column, 9)
}

/// Row and column of A's i-th element in a lane, for 16-bit types.
fn place_a(lane: usize, i: usize) -> (usize, usize) {
    let row = if i < 2 || (4..6).contains(&i) {
        lane / 4
    } else {
        lane / 4 + 8
    };
    let column = (lane % 4) * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
    (row, column)
}

fn place_b(lane: usize, i: usize) -> (usize, usize) {
    (
        (lane % 4) * 2 + (i & 1) + if i >= 2 { 8 } else { 0 },
        lane / 4,
    )
}

fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (
        if i < 2 { lane / 4 } else { lane / 4 + 8 },
        (lane % 4) * 2 + (i & 1),
    )
}

fn narrow_registers(k: usize, encode: fn(f32) -> u32) -> Vec<Vec<u32>> {
    let pair = |low: f32, high: f32| encode(low) | encode(high) << 16;
    (0..32)
        .map(|lane| {
            let a = |i| value(place_a(lane, i).0, place_a(lane, i).1, 1);
            let b = |i| value(place_b(lane, i).0, place_b(lane, i).1, 5);
            let mut registers: Vec<u32> =
                (0..k / 4).map(|r| pair(a(2 * r), a(2 * r + 1))).collect();
            registers.extend((0..k / 8).map(|r| pair(b(2 * r), b(2 * r + 1))));
            registers
        })
        .collect()
}

#[test]
fn narrow_products_with_f32_accumulators_equal_the_plain_product() {
    for (name, encode) in [("bf16", bf16 as fn(f32) -> u32), ("f16", f16)] {
        for k in [8, 16] {
            let mut registers = narrow_registers(k, encode);
            for (lane, registers) in registers.iter_mut().enumerate() {
                registers.extend(
                    (0..4).map(|i| value(place_c(lane, i).0, place_c(lane, i).1, 9).to_bits()),
                );
            }
            let instruction = format!("mma.sync.aligned.m16n8k{k}.row.col.f32.{name}.{name}.f32");
            let results = run(&instruction, (k / 4, k / 8, 4), &registers);
            for (lane, result) in results.iter().enumerate() {
                for (i, bits) in result.iter().enumerate() {
                    let (row, column) = place_c(lane, i);
                    assert_eq!(
                        f32::from_bits(*bits),
                        product(row, column, k),
                        "{name} k{k} ({row}, {column})"
                    );
                }
            }
        }
    }
}

#[test]
fn f16_accumulators_hold_two_columns_a_register() {
    for k in [8, 16] {
        let mut registers = narrow_registers(k, f16);
        for (lane, registers) in registers.iter_mut().enumerate() {
            let c = |i: usize| f16(value(place_c(lane, i).0, place_c(lane, i).1, 9));
            registers.extend([c(0) | c(1) << 16, c(2) | c(3) << 16]);
        }
        let results = run(
            &format!("mma.sync.aligned.m16n8k{k}.row.col.f16.f16.f16.f16"),
            (k / 4, k / 8, 2),
            &registers,
        );
        for (lane, result) in results.iter().enumerate() {
            for i in 0..4 {
                let (row, column) = place_c(lane, i);
                assert_eq!(
                    result[i / 2] >> (16 * (i & 1)) & 0xffff,
                    f16(product(row, column, k))
                );
            }
        }
    }
}

#[test]
fn tf32_products_ignore_the_low_bits() {
    for k in [4, 8] {
        let registers: Vec<Vec<u32>> = (0..32)
            .map(|lane| {
                let a = |i: usize| {
                    value(lane / 4 + 8 * (i & 1), lane % 4 + 4 * (i / 2), 1).to_bits() | 0x1fff
                };
                let b = |i: usize| value(lane % 4 + 4 * i, lane / 4, 5).to_bits();
                let c = |i: usize| value(place_c(lane, i).0, place_c(lane, i).1, 9).to_bits();
                (0..k / 2)
                    .map(a)
                    .chain((0..k / 4).map(b))
                    .chain((0..4).map(c))
                    .collect()
            })
            .collect();
        let results = run(
            &format!("mma.sync.aligned.m16n8k{k}.row.col.f32.tf32.tf32.f32"),
            (k / 2, k / 4, 4),
            &registers,
        );
        for (lane, result) in results.iter().enumerate() {
            for (i, bits) in result.iter().enumerate() {
                let (row, column) = place_c(lane, i);
                assert_eq!(
                    f32::from_bits(*bits),
                    product(row, column, k),
                    "k{k} ({row}, {column})"
                );
            }
        }
    }
}

/// Four 8×8 matrices, 16-byte rows one after another: element (row, column) of matrix m holds m·256 + row·16 + column.
fn shared_matrices(body: &str, results: usize) -> Vec<Vec<u32>> {
    let stores: String = (0..results)
        .map(|i| format!("st.global.u32 [%out+{}], %r{i};\n", 4 * i))
        .collect();
    let text = format!(
        "{HEADER}.visible .entry k(.param .u64 pout) {{
            .shared .align 16 .b8 tile[512];
            .reg .b32 %r<8>, %t, %m, %s, %v, %w, %i; .reg .b64 %out, %off; .reg .pred %p;
            ld.param.u64 %out, [pout]; mov.u32 %t, %tid.x;
            mul.wide.u32 %off, %t, {}; add.s64 %out, %out, %off;
            // Lane t writes row t mod 8 of matrix t / 8.
            shr.u32 %m, %t, 3; shl.b32 %m, %m, 8; and.b32 %s, %t, 7; shl.b32 %s, %s, 4; or.b32 %m, %m, %s;
            mov.u32 %s, tile; shl.b32 %v, %t, 4; add.u32 %s, %s, %v;
            mov.u32 %i, 0;
            FILL: add.u32 %v, %m, %i; add.u32 %w, %v, 1; shl.b32 %w, %w, 16; or.b32 %v, %v, %w;
            shl.b32 %w, %i, 1; add.u32 %w, %s, %w; st.shared.u32 [%w], %v;
            add.u32 %i, %i, 2; setp.lt.u32 %p, %i, 8; @%p bra FILL;
            bar.warp.sync -1;
            {body}
            {stores} ret; }}",
        4 * results
    );
    let module = Module::parse(&text, "ldmatrix").expect("well-formed");
    let mut device = Device::new();
    let output = device.alloc(128 * results);
    device
        .launch(&module, "k", &one_block(32), &args(&[output]))
        .unwrap_or_else(|f| panic!("{f}"));
    let bytes = device.read(output, 128 * results).expect("stored");
    let words: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|w| u32::from_le_bytes(w.try_into().expect("4 bytes")))
        .collect();
    words.chunks_exact(results).map(<[u32]>::to_vec).collect()
}

fn element(matrix: usize, row: usize, column: usize) -> u32 {
    (matrix * 256 + row * 16 + column) as u32
}

#[test]
fn ldmatrix_gives_each_lane_two_neighbours_of_a_row_or_of_a_column() {
    for (trans, suffix) in [(false, ""), (true, ".trans")] {
        for count in [1, 2, 4] {
            let registers = (0..count)
                .map(|i| format!("%r{i}"))
                .collect::<Vec<_>>()
                .join(", ");
            let body = format!(
                "ldmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16 {{{registers}}}, [%s];"
            );
            for (lane, registers) in shared_matrices(&body, count).iter().enumerate() {
                for (matrix, register) in registers.iter().enumerate() {
                    let (line, pair) = (lane / 4, 2 * (lane % 4));
                    let at = |half: usize| {
                        if trans {
                            element(matrix, pair + half, line)
                        } else {
                            element(matrix, line, pair + half)
                        }
                    };
                    assert_eq!(
                        *register,
                        at(0) | at(1) << 16,
                        "x{count}{suffix} lane {lane} matrix {matrix}"
                    );
                }
            }
        }
    }
}

#[test]
fn stmatrix_puts_back_what_ldmatrix_gave() {
    for suffix in ["", ".trans"] {
        let body = format!(
            "ldmatrix.sync.aligned.m8n8.x4{suffix}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%s];
             bar.warp.sync -1;
             stmatrix.sync.aligned.m8n8.x4{suffix}.shared.b16 [%s], {{%r4, %r5, %r6, %r7}};
             bar.warp.sync -1;
             ld.shared.v4.u32 {{%r0, %r1, %r2, %r3}}, [%s];"
        );
        for (lane, registers) in shared_matrices(&body, 4).iter().enumerate() {
            for (i, register) in registers.iter().enumerate() {
                let at = |half: usize| element(lane / 8, lane % 8, 2 * i + half);
                assert_eq!(*register, at(0) | at(1) << 16);
            }
        }
    }
}

#[test]
fn movmatrix_transposes() {
    let body = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%s];
        movmatrix.sync.aligned.m8n8.trans.b16 %r0, %r1;";
    for (lane, registers) in shared_matrices(body, 1).iter().enumerate() {
        let at = |half: usize| element(0, 2 * (lane % 4) + half, lane / 4);
        assert_eq!(registers[0], at(0) | at(1) << 16);
    }
}
