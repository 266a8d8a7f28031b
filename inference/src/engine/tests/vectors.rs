//! Embeddings against a decoder in plain arithmetic.

use super::*;
use crate::backend::plain::Plain;
use crate::gguf::{Gguf, Writer};

/// A sample that names a pooling type, or none.
fn pooled(family: &str, pooling: Option<u32>) -> Gguf {
    let gguf = Sample { layers: 2, ..Sample::of(family) }.gguf().expect("a sample");
    let Some(pooling) = pooling else { return gguf };
    let mut writer = Writer::with_metadata_of(&gguf);
    writer.set(&format!("{family}.pooling_type"), pooling);
    let mut data = Vec::new();
    for info in gguf.tensors() {
        writer.declare(&info.name, &info.shape, info.ty).expect("declared before");
        data.push(gguf.tensor(&info.name).expect("listed").data);
    }
    Gguf::from_bytes(writer.into_bytes(&data).expect("complete")).expect("well-formed")
}

fn of_length_one(vector: Vec<f64>) -> Vec<f64> {
    let length = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
    vector.into_iter().map(|v| v / length).collect()
}

/// The vector of a text, from the hidden states of its tokens.
fn by_hand(rows: &[Vec<f64>], pooling: Option<u32>) -> Vec<f64> {
    let mean = || (0..rows[0].len()).map(|i| rows.iter().map(|r| r[i]).sum::<f64>()).collect();
    of_length_one(match pooling {
        None | Some(0 | 1) => mean(),
        Some(2) => rows[0].clone(),
        _ => rows[rows.len() - 1].clone(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pooling_type_gives_the_vectors_of_plain_arithmetic() {
    // One within a block, one over several blocks and several chunks of its prompt.
    let inputs = [prompt(2, 7), prompt(3, 90)];
    for backend in [BackendChoice::Native, BackendChoice::Candle] {
        for pooling in [None, Some(0), Some(1), Some(2), Some(3)] {
            let gguf = pooled("qwen3", pooling);
            let options = EngineOptions {
                backend,
                budget_bytes: 256 << 20,
                threads: 2,
                context_tokens_max: 256,
                kv_tokens_max: 1024,
                kv_type: KvType::F32,
                batch_tokens_max: 32,
                ..EngineOptions::default()
            };
            let engine = Engine::start(options).expect("an engine");
            engine.load("m", gguf.clone()).await.expect("loads");
            let request = EmbedRequest {
                model: "m".to_owned(),
                inputs: inputs.iter().map(|tokens| Prompt::Tokens(tokens.clone())).collect(),
                principal: "test".to_owned(),
                priority: PRIORITY_DEFAULT,
                deadline_ms: None,
            };
            let found = engine.embed(request).await.expect("vectors");
            let plain = Plain::new(&gguf);
            for (found, tokens) in found.vectors.iter().zip(&inputs) {
                let expected = by_hand(&plain.hidden(tokens), pooling);
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 1e-5, "{backend:?}, {pooling:?}: {found}, {expected}");
                }
            }
        }
    }
}
