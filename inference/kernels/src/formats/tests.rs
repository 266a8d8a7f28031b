mod golden;

use super::*;

#[test]
fn the_table_has_one_row_per_type_in_the_types_order() {
    for (i, row) in TABLE.iter().enumerate() {
        assert_eq!(row.ty as usize, i, "{}", row.name);
        assert_eq!(TensorType::from_ggml_id(row.id), Ok(row.ty));
        assert_eq!(TensorType::from_name(&row.name.to_lowercase()), Some(row.ty));
    }
}

#[test]
fn unknown_and_withdrawn_ids_are_refused_in_words() {
    let withdrawn = TensorType::from_ggml_id(4).unwrap_err().to_string();
    assert!(withdrawn.contains("Q4_2 was withdrawn"), "{withdrawn}");
    let unknown = TensorType::from_ggml_id(999).unwrap_err().to_string();
    assert!(unknown.contains("999") && unknown.contains("unknown"), "{unknown}");
    let unsupported = dequantize(TensorType::Iq2Xs, &[0; 74], &mut [0.0; 256]).unwrap_err();
    assert!(unsupported.to_string().contains("IQ2_XS"), "{unsupported}");
}

#[test]
fn sizes_that_do_not_fill_blocks_or_overflow_have_no_bytes() {
    assert_eq!(TensorType::Q4_0.row_bytes(64), Some(36));
    assert_eq!(TensorType::Q4_0.row_bytes(33), None);
    assert_eq!(TensorType::F32.row_bytes(usize::MAX), None);
    assert_eq!(TensorType::F32.tensor_bytes(&[1 << 40, 1 << 40]), None);
    assert_eq!(TensorType::F32.tensor_bytes(&[]), None);
    assert_eq!(TensorType::I2S.tensor_bytes(&[256, 2]), Some(128 + 32));
}

#[test]
fn lengths_that_do_not_belong_together_are_refused() {
    let refused = dequantize(TensorType::Q8_0, &[0; 33], &mut [0.0; 32]).unwrap_err();
    assert!(matches!(refused, FormatError::Length { found_bytes: 33, expected_bytes: 34, .. }));
    let refused = quantize(TensorType::Q8_0, &[0.0; 31]).unwrap_err();
    assert_eq!(refused, FormatError::PartialBlock { ty: TensorType::Q8_0, values: 31 });
}

/// Numbers that look like weights, the same on every machine.
pub(super) fn weights(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    // The sum of a few uniform numbers is close to a normal distribution.
    (0..count).map(|_| (next() + next() + next() + next()) * 0.05).collect()
}

/// Root mean square error relative to the values' own size.
pub(super) fn relative_error(ty: TensorType, values: &[f32]) -> f32 {
    let data = quantize(ty, values).unwrap();
    let mut back = vec![0.0; values.len()];
    dequantize(ty, &data, &mut back).unwrap();
    let error: f32 = values.iter().zip(&back).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f32 = values.iter().map(|a| a * a).sum();
    (error / size).sqrt()
}

#[test]
fn weights_come_back_within_each_types_error() {
    use TensorType as T;
    let bounds = [
        (T::F32, 0.0),
        (T::F16, 3e-4),
        (T::Bf16, 2e-3),
        (T::Q8_0, 6e-3),
        (T::Q5_1, 0.038),
        (T::Q5_0, 0.042),
        (T::Q4_1, 0.078),
        (T::Q4_0, 0.09),
        (T::Q6K, 0.0175),
        (T::Q5K, 0.0365),
        (T::Q4K, 0.073),
        (T::Iq4Nl, 0.08),
        (T::Mxfp4, 0.13),
        (T::Q3K, 0.15),
        (T::Q2K, 0.3),
    ];
    for (ty, bound) in bounds {
        let error = relative_error(ty, &weights(4096, 7));
        assert!(error <= bound, "{ty}: {error} > {bound}");
    }
}

#[test]
fn ternary_values_come_back_exactly() {
    for ty in [TensorType::Tq1_0, TensorType::Tq2_0, TensorType::I2S] {
        let values: Vec<f32> =
            weights(1024, 3).iter().map(|w| (w * 30.0).round().clamp(-1.0, 1.0) * 0.25).collect();
        assert!(values.contains(&0.25) && values.contains(&-0.25) && values.contains(&0.0));
        let data = quantize(ty, &values).unwrap();
        let mut back = vec![9.0; 1024];
        dequantize(ty, &data, &mut back).unwrap();
        assert_eq!(values, back, "{ty}");
    }
}

#[test]
fn the_shared_exponent_covers_the_largest_value() {
    for largest in [1e-30f32, 0.02, 1.0, 6.0, 7.9, 1e30] {
        let mut values = [0.0; 32];
        values[3] = -largest;
        let data = quantize(TensorType::Mxfp4, &values).unwrap();
        let mut back = [0.0; 32];
        dequantize(TensorType::Mxfp4, &data, &mut back).unwrap();
        assert!((back[3] + largest).abs() <= largest * 0.26, "{largest} came back as {}", back[3]);
    }
}

#[test]
fn values_that_are_not_finite_do_not_panic() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, 1e-44, -1e30];
    let values: Vec<f32> = odd.iter().copied().cycle().take(512).collect();
    for ty in TensorType::all().filter(|ty| ty.can_quantize()) {
        let data = quantize(ty, &values).unwrap();
        dequantize(ty, &data, &mut vec![0.0; values.len()]).unwrap();
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_of_the_right_length_can_be_read(bytes in proptest::collection::vec(0u8.., 600)) {
        for ty in TensorType::all().filter(|ty| ty.can_dequantize()) {
            let len = ty.tensor_bytes(&[256]).unwrap();
            let data: Vec<u8> = bytes.iter().copied().cycle().take(len).collect();
            dequantize(ty, &data, &mut [0.0; 256]).unwrap();
        }
    }

    #[test]
    fn the_block_types_err_by_half_a_step_at_most(
        values in proptest::collection::vec(-1.0f32..1.0, 32)
    ) {
        let largest = values.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        // Step sizes: the range over the number of levels; one more half step at the upper end
        // where the levels are not symmetric, and the scale's own rounding to f16.
        for (ty, steps) in [(TensorType::Q4_0, 8.0), (TensorType::Q5_0, 16.0), (TensorType::Q8_0, 127.0)] {
            let data = quantize(ty, &values).unwrap();
            let mut back = [0.0; 32];
            dequantize(ty, &data, &mut back).unwrap();
            for (a, b) in values.iter().zip(back) {
                let bound = largest / steps * 1.01 + largest * 1e-3;
                proptest::prop_assert!((a - b).abs() <= bound, "{ty}: {a} came back as {b}");
            }
        }
    }
}
