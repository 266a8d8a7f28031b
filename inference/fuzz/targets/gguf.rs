//! A model file: whatever its bytes are, reading it, its architecture, its vocabulary and its
//! template gives a value or an error.
#![no_main]

use fulmar_inference::chat::{ChatTemplate, RenderInput};
use fulmar_inference::gguf::Gguf;
use fulmar_inference::model::Architecture;
use fulmar_inference::tokenizer::{Special, Tokenizer};
use fulmar_kernels::formats::dequantize;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(data.to_vec()) else { return };
    for (key, value) in gguf.values() {
        let _ = (value.to_string(), gguf.u32(key), gguf.f32(key), gguf.bool(key), gguf.str(key));
        let _ = (gguf.u32s(key), gguf.i32s(key), gguf.f32s(key), gguf.bools(key));
        let _ = (gguf.strings(key), gguf.u32_per_layer(key, 3));
    }
    for info in gguf.tensors() {
        let tensor = gguf.tensor(&info.name).expect("a listed tensor is found");
        assert_eq!(tensor.data.len(), info.size_bytes);
        if info.ty.can_dequantize() {
            let mut values = vec![0.0; info.elements()];
            dequantize(info.ty, tensor.data, &mut values).expect("its size was checked");
        }
    }
    let _ = Architecture::from_gguf(&gguf);
    let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) else { return };
    let ids = tokenizer.encode("Hello wörld  12345\n<|im_end|>", Special::Parse);
    assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_len()));
    let _ = tokenizer.decode(&ids);
    if let Ok(Some(template)) = ChatTemplate::from_gguf(&gguf, &tokenizer) {
        let messages = [json!({"role": "user", "content": "Hello"})];
        let (kwargs, tools) = (Value::Null, None);
        let input = RenderInput {
            messages: &messages,
            tools,
            kwargs: &kwargs,
            add_generation_prompt: true,
            now_s: 0,
        };
        let _ = template.render(&input);
    }
});
