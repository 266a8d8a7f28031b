use std::fs;

use super::*;

/// A model of two tensors and a norm, the weights a fixed wave.
fn source(folder: &Path, ty: TensorType, spoil: Option<f32>) -> std::path::PathBuf {
    let mut weights: Vec<f32> = (0..64 * 40).map(|i| (i as f32 * 0.37).sin() * 0.2).collect();
    if let Some(value) = spoil {
        weights[70] = value;
    }
    let mut writer = Writer::new("qwen3");
    writer.set("general.name", "gull").set("qwen3.block_count", 1u32);
    writer.declare("blk.0.attn_q.weight", &[64, 40], ty).unwrap();
    writer.declare("token_embd.weight", &[40, 3], ty).unwrap();
    writer.declare("output_norm.weight", &[40], TensorType::F32).unwrap();
    let data = [
        formats::quantize(ty, &weights).unwrap(),
        formats::quantize(ty, &weights[..120]).unwrap(),
        formats::quantize(TensorType::F32, &[1.0; 40]).unwrap(),
    ];
    let path = folder.join("source.gguf");
    fs::write(&path, writer.into_bytes(&data).unwrap()).unwrap();
    path
}

fn run(folder: &Path, source: &Path, mix: Mix) -> Result<Gguf, QuantizeError> {
    let output = folder.join("out.gguf");
    let options = QuantizeOptions { mix, threads: 2 };
    let mut seen = Vec::new();
    quantize(source, &output, &options, &mut |p| seen.push((p.done_bytes, p.total_bytes)))?;
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[2].0, seen[2].1);
    Ok(Gguf::open(&output)?)
}

#[test]
fn weights_become_the_type_asked_for_and_norms_stay_exact() {
    let folder = tempfile::tempdir().unwrap();
    let path = source(folder.path(), TensorType::F16, None);
    let gguf = run(folder.path(), &path, Mix::Q8_0).unwrap();
    assert_eq!(gguf.str("general.name").unwrap(), Some("gull"));
    assert_eq!(gguf.u32("general.file_type").unwrap(), Some(7));
    let query = gguf.tensor("blk.0.attn_q.weight").unwrap();
    assert_eq!(query.info.ty, TensorType::Q8_0);
    let mut values = vec![0.0; 64 * 40];
    formats::dequantize(TensorType::Q8_0, query.data, &mut values).unwrap();
    assert!((values[100] - (100.0_f32 * 0.37).sin() * 0.2).abs() < 2e-3);
    // 40 values fill no block of 32
    assert_eq!(gguf.tensor("token_embd.weight").unwrap().info.ty, TensorType::F16);
    assert_eq!(gguf.tensor("output_norm.weight").unwrap().info.ty, TensorType::F32);
}

#[test]
fn every_mix_writes_a_file_that_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = source(folder.path(), TensorType::F32, None);
    for mix in Mix::ALL {
        let gguf = run(folder.path(), &path, mix).unwrap();
        assert_eq!(gguf.u32("general.file_type").unwrap(), Some(mix.file_type()), "{}", mix.name());
    }
}

#[test]
fn a_quantised_source_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = source(folder.path(), TensorType::F16, None);
    run(folder.path(), &path, Mix::Q4_0).unwrap();
    fs::rename(folder.path().join("out.gguf"), folder.path().join("small.gguf")).unwrap();
    let refused = run(folder.path(), &folder.path().join("small.gguf"), Mix::Q8_0).unwrap_err();
    assert!(matches!(refused, QuantizeError::AlreadyQuantized { .. }), "{refused}");
}

#[test]
fn a_weight_that_is_no_number_is_named_and_leaves_no_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = source(folder.path(), TensorType::F32, Some(f32::NAN));
    let refused = run(folder.path(), &path, Mix::Q8_0).unwrap_err().to_string();
    assert_eq!(
        refused,
        "quantize tensor blk.0.attn_q.weight: value 70 is NaN, expected a finite number"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
