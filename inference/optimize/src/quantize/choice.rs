//! Which tensor gets which type.
//!
//! llama.cpp's rules (`llama_tensor_get_type`), for the mixes that this program writes.

use fulmar_inference::gguf::Gguf;
use fulmar_kernels::formats::TensorType;

use super::QuantizeError;

/// A named mix of weight types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // llama.cpp's names, see `Mix::name`
pub enum Mix {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4KS,
    Q4KM,
    Q5KS,
    Q5KM,
    Q6K,
}

impl Mix {
    /// Every mix.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4KS,
        Self::Q4KM,
        Self::Q5KS,
        Self::Q5KM,
        Self::Q6K,
    ];

    /// llama.cpp's name and `general.file_type`, and the type of most tensors.
    fn row(self) -> (&'static str, u32, TensorType) {
        use TensorType as T;
        match self {
            Self::F32 => ("F32", 0, T::F32),
            Self::F16 => ("F16", 1, T::F16),
            Self::Bf16 => ("BF16", 32, T::Bf16),
            Self::Q4_0 => ("Q4_0", 2, T::Q4_0),
            Self::Q4_1 => ("Q4_1", 3, T::Q4_1),
            Self::Q5_0 => ("Q5_0", 8, T::Q5_0),
            Self::Q5_1 => ("Q5_1", 9, T::Q5_1),
            Self::Q8_0 => ("Q8_0", 7, T::Q8_0),
            Self::Q4KS => ("Q4_K_S", 14, T::Q4K),
            Self::Q4KM => ("Q4_K_M", 15, T::Q4K),
            Self::Q5KS => ("Q5_K_S", 16, T::Q5K),
            Self::Q5KM => ("Q5_K_M", 17, T::Q5K),
            Self::Q6K => ("Q6_K", 18, T::Q6K),
        }
    }

    /// llama.cpp's name, for example `Q4_K_M`.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// The mix of this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mix| mix.name().eq_ignore_ascii_case(name))
    }

    /// The value of `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.row().1
    }

    fn base(self) -> TensorType {
        self.row().2
    }

    fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }
}

/// The type of every tensor, in the file's order.
pub(super) fn types(gguf: &Gguf, mix: Mix) -> Result<Vec<TensorType>, QuantizeError> {
    let tied = gguf.info("output.weight").is_none();
    let layers =
        gguf.tensors().iter().filter_map(|info| layer(&info.name)).max().map_or(0, |last| last + 1);
    gguf.tensors()
        .iter()
        .map(|info| {
            let floats = [TensorType::F32, TensorType::F16, TensorType::Bf16];
            // Norms, biases and rotary factors are small and sensitive.
            if info.shape.len() < 2 || !info.name.ends_with(".weight") {
                return Ok(TensorType::F32);
            }
            if !floats.contains(&info.ty) {
                let name = info.name.clone();
                return Err(QuantizeError::AlreadyQuantized { name, found: info.ty });
            }
            let wanted = wanted(&info.name, mix, tied, layers);
            Ok(fitting(wanted, info.shape[0]))
        })
        .collect()
}

/// The type by role, before the row length is looked at.
fn wanted(name: &str, mix: Mix, tied: bool, layers: usize) -> TensorType {
    let base = mix.base();
    if mix.is_float() || mix == Mix::Q8_0 {
        return base;
    }
    // The head, which is the embedding where the two are tied.
    if name == "output.weight" || (tied && name == "token_embd.weight") {
        return TensorType::Q6K;
    }
    let medium = matches!(mix, Mix::Q4KM | Mix::Q5KM);
    let Some(index) = layer(name) else { return base };
    if name.ends_with("attn_v.weight") || name.ends_with("ffn_down.weight") {
        if medium && more_bits(index, layers) {
            return TensorType::Q6K;
        }
        let early = match name.ends_with("attn_v.weight") {
            true => 4,
            false => layers / 8,
        };
        if mix == Mix::Q4KS && index < early {
            return TensorType::Q5K;
        }
    }
    if name.ends_with("attn_qkv.weight") && medium {
        return if mix == Mix::Q4KM { TensorType::Q5K } else { TensorType::Q6K };
    }
    base
}

/// llama.cpp's `use_more_bits`: the first and last eighth, and every third layer between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// A type whose blocks the rows fill: llama.cpp's fallbacks.
fn fitting(wanted: TensorType, row: usize) -> TensorType {
    use TensorType as T;
    if row.is_multiple_of(wanted.block_len()) && wanted.can_quantize() {
        return wanted;
    }
    let smaller_blocks = match wanted {
        T::Q4K => T::Q5_0,
        T::Q5K => T::Q5_1,
        T::Q6K => T::Q8_0,
        other => other,
    };
    if row.is_multiple_of(smaller_blocks.block_len()) { smaller_blocks } else { T::F16 }
}

/// The layer's number in `blk.7.attn_q.weight`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_are_unique() {
        for mix in Mix::ALL {
            assert_eq!(Mix::from_name(&mix.name().to_lowercase()), Some(mix));
        }
        assert_eq!(Mix::from_name("Q9"), None);
    }

    #[test]
    fn rows_that_fill_no_block_fall_back_to_one_they_fill() {
        assert_eq!(fitting(TensorType::Q8_0, 64), TensorType::Q8_0);
        assert_eq!(fitting(TensorType::Q8_0, 40), TensorType::F16);
        assert_eq!(fitting(TensorType::Q6K, 288), TensorType::Q8_0);
        assert_eq!(fitting(TensorType::Q4K, 288), TensorType::Q5_0);
    }

    #[test]
    fn the_head_keeps_more_bits_also_where_it_is_the_embedding() {
        assert_eq!(wanted("token_embd.weight", Mix::Q4_0, true, 8), TensorType::Q6K);
        assert_eq!(wanted("token_embd.weight", Mix::Q4_0, false, 8), TensorType::Q4_0);
        assert_eq!(wanted("output.weight", Mix::Q5_1, false, 8), TensorType::Q6K);
        assert_eq!(wanted("output.weight", Mix::Q8_0, false, 8), TensorType::Q8_0);
    }

    #[test]
    fn the_medium_mixes_follow_llama_cpp_layer_by_layer() {
        let of =
            |layer: usize| wanted(&format!("blk.{layer}.ffn_down.weight"), Mix::Q4KM, false, 16);
        let six: Vec<usize> = (0..16).filter(|l| of(*l) == TensorType::Q6K).collect();
        assert_eq!(six, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(wanted("blk.4.attn_q.weight", Mix::Q4KM, false, 16), TensorType::Q4K);
    }
}
