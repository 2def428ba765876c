use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::kernels::embed::{Embed, EmbedArgs};
use streamgauge::backend::cuda::{DevicePtr, LaunchError};

use crate::harness::{Element, Random, cases, normal, on_every_schedule};
use crate::layout::{Layout, assert_same_bits};

const VOCAB: usize = 11;

fn check<W: Element, R: Element>(rows: usize, width: usize, gap: usize, seed: u64) {
    let at = Layout::with_gaps(rows, width, gap);
    let table: Vec<W> = normal(VOCAB * width, seed, 1.0);
    let mut random = Random(seed);
    let tokens: Vec<u32> = (0..rows).map(|_| random.below(VOCAB) as u32).collect();
    let want: Vec<R> = tokens
        .iter()
        .flat_map(|&t| &table[t as usize * width..][..width])
        .map(|w| R::round(w.wide()))
        .collect();
    let got = on_every_schedule(|gpu| {
        let (table, tokens) = (gpu.input(&table), gpu.input(&tokens));
        let out = gpu.canvas::<R>(at.len());
        let embed = Embed {
            dtype: W::DTYPE,
            f32_resid: W::DTYPE != R::DTYPE,
        };
        gpu.launch(
            &embed,
            &EmbedArgs {
                table: table.ptr(),
                tokens: tokens.ptr(),
                out: out.at(at.offset),
                out_stride: at.stride as u64,
                rows: rows as u32,
                width: width as u32,
            },
        );
        gpu.read(&out)
    });
    assert_same_bits("row", &at.take(&got), &want);
}

proptest! {
    #![proptest_config(cases(3))]
    #[test]
    fn rows_are_the_tokens_embeddings(rows in 1usize..6, eighths in 1usize..160, gap in (0usize..3).prop_map(|g| g * 8), seed: u64) {
        check::<bf16, bf16>(rows, eighths * 8, gap, seed);
        check::<f16, f16>(rows, eighths * 8, gap, seed);
        check::<f32, f32>(rows, eighths * 8, gap, seed);
        check::<bf16, f32>(rows, eighths * 8, gap, seed);
        check::<f16, f32>(rows, eighths * 8, gap, seed);
    }
}

#[test]
fn what_the_kernel_cannot_do_is_refused_by_name() {
    let good = EmbedArgs {
        table: DevicePtr(256),
        tokens: DevicePtr(512),
        out: DevicePtr(1024),
        out_stride: 16,
        rows: 1,
        width: 16,
    };
    for (args, part) in [
        (EmbedArgs { rows: 0, ..good }, "rows is 0"),
        (
            EmbedArgs { width: 12, ..good },
            "width is 12, not a multiple of 8",
        ),
        (
            EmbedArgs {
                out: DevicePtr(1026),
                ..good
            },
            "out is at 0x402, not a multiple of 16 bytes",
        ),
        (
            EmbedArgs {
                out_stride: 12,
                ..good
            },
            "out's row stride is 12",
        ),
        (
            EmbedArgs {
                out_stride: 8,
                ..good
            },
            "less than its width 16",
        ),
        (
            EmbedArgs {
                tokens: DevicePtr::NULL,
                ..good
            },
            "tokens is null",
        ),
    ] {
        on_every_schedule(|gpu| {
            let embed = Embed {
                dtype: bf16::DTYPE,
                f32_resid: false,
            };
            let Err(LaunchError::Arguments { kernel, what }) = gpu.try_launch(&embed, &args) else {
                panic!("launched {args:?}");
            };
            assert_eq!(kernel, "embed_bf16");
            assert!(what.contains(part), "{what:?} does not say {part:?}");
        });
    }
}
