//! `kernels/cache.cu`: rows go where they are told, and nothing else is written.

use streamgauge::backend::cuda::kernels::cache::{CacheRows, CacheRowsArgs, NOWHERE};

use crate::harness::{is_poison, on_every_schedule};

#[test]
fn keys_and_values_go_to_their_slots_and_nowhere_else() {
    const VECTORS: usize = 5;
    let (k_stride, v_stride) = (VECTORS + 1, VECTORS + 3);
    let slots = [3, NOWHERE, 0, 5];
    let rows = |stride: usize, seed: u32| -> Vec<u32> {
        (0..slots.len() * stride * 4)
            .map(|i| i as u32 + seed)
            .collect()
    };
    let (k, v) = (rows(k_stride, 1000), rows(v_stride, 5000));
    let (k_cache, v_cache) = on_every_schedule(|gpu| {
        let (k, v, slots) = (gpu.input(&k), gpu.input(&v), gpu.input(&slots));
        let k_cache = gpu.canvas::<u32>(7 * VECTORS * 4);
        let v_cache = gpu.canvas::<u32>(7 * VECTORS * 4);
        let args = CacheRowsArgs {
            k: k.ptr(),
            v: v.ptr(),
            k_cache: k_cache.ptr(),
            v_cache: v_cache.ptr(),
            slots: slots.ptr(),
            k_stride: k_stride as u64,
            v_stride: v_stride as u64,
            rows: 4,
            vectors: VECTORS as u32,
        };
        gpu.launch(&CacheRows, &args);
        (gpu.read(&k_cache), gpu.read(&v_cache))
    });
    for (cache, rows, stride) in [(k_cache, k, k_stride), (v_cache, v, v_stride)] {
        for (slot, row) in cache.chunks(VECTORS * 4).enumerate() {
            match slots.iter().position(|&s| s == slot as u32) {
                Some(from) => assert_eq!(row, &rows[from * stride * 4..][..VECTORS * 4]),
                None => assert!(row.iter().all(is_poison), "slot {slot} was written"),
            }
        }
    }
}
