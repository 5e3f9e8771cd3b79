//! Any text as `config.json`: refused, or a shape whose bytes can be counted.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use llama_quant::quant::size::model_bytes;
use llama_quant::quant::{Code4, Format};
use llama_quant::source::config::parse;

fuzz_target!(|text: &str| {
    if let Ok(config) = parse(text, Path::new("config.json")) {
        assert!(config.heads % config.kv_heads == 0 && config.head_dim % 2 == 0);
        assert!(config.rms_norm_eps > 0.0 && config.rope_theta >= 1.0);
        let plain = model_bytes(&config, Format::Fp16).parameters;
        let packed = model_bytes(&config, Format::bnb4(Code4::Nf4, true));
        assert!(packed.parameters <= plain && packed.parameters <= packed.with_state);
    }
});
