//! What others read from blocks, and write into them: see `golden.py`, which made the data.

use super::*;

struct Record<'a> {
    ty: TensorType,
    written: bool,
    data: &'a [u8],
    values: Vec<f32>,
}

fn records() -> Vec<Record<'static>> {
    let mut rest: &[u8] = include_bytes!("golden.bin");
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (head, behind) = rest.split_at(20);
        let name = std::str::from_utf8(&head[..8]).unwrap().trim_end_matches('\0');
        let number = |at| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
        let (data, behind) = behind.split_at(number(12));
        let (floats, behind) = behind.split_at(number(16) * 4);
        let values = floats.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
        let ty = TensorType::from_name(name).unwrap();
        records.push(Record { ty, written: number(8) == 1, data, values });
        rest = behind;
    }
    records
}

#[test]
fn every_type_of_files_is_read_as_others_read_it() {
    let mut seen = Vec::new();
    for Record { ty, data, values, .. } in records().into_iter().filter(|r| !r.written) {
        let mut found = vec![0.0; values.len()];
        dequantize(ty, data, &mut found).unwrap();
        for (i, (found, expected)) in found.iter().zip(&values).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{ty}, value {i}: {found}, {expected}");
        }
        seen.push(ty);
    }
    // F32 and F64 are the processor's own; Q8_K is never in a file.
    use TensorType::{F32, F64, Q8K};
    let missing = |ty: &TensorType| !seen.contains(ty) && ![F32, F64, Q8K].contains(ty);
    let missing: Vec<_> =
        TensorType::all().filter(|t| t.can_dequantize()).filter(missing).collect();
    assert!(missing.is_empty(), "{missing:?} have no blocks");
}

#[test]
fn the_plain_types_are_written_as_others_write_them() {
    let records: Vec<_> = records().into_iter().filter(|r| r.written).collect();
    assert_eq!(records.len(), 9);
    for Record { ty, data, values, .. } in records {
        let found = quantize(ty, &values).unwrap();
        let at = found.iter().zip(data).position(|(a, b)| a != b);
        assert_eq!(at, None, "{ty}: {found:?}\n{data:?}");
    }
}
