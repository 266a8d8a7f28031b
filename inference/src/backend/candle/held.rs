//! Bytes that candle's tensors hold, by their storage and not by what was asked for.

use candle_core::quantized::QMatMul;
use candle_core::{CpuStorage, Storage, Tensor};

/// Bytes of a tensor's storage: on the CPU its allocation, elsewhere its elements.
pub(super) fn of_tensor(tensor: &Tensor) -> u64 {
    let elements = || (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::U8(values)) => crate::held::of_vec(values),
        Storage::Cpu(CpuStorage::F16(values)) => crate::held::of_vec(values),
        Storage::Cpu(CpuStorage::BF16(values)) => crate::held::of_vec(values),
        Storage::Cpu(CpuStorage::F32(values)) => crate::held::of_vec(values),
        _ => elements(),
    }
}

/// Bytes of a quantised matrix. The copy that candle interleaves for its kernels at the first
/// product is its own, and is not among them.
pub(super) fn of_quantized(weight: &QMatMul) -> u64 {
    match weight {
        QMatMul::QTensor(tensor) => tensor.storage_size_in_bytes() as u64,
        QMatMul::Tensor(tensor) | QMatMul::TensorF16(tensor) => of_tensor(tensor),
    }
}
