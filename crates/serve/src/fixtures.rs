//! The tiny seeded model, for tests.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device};
use model::config::Family;
use model::decoder::Decoder;
use model::engine::{Adapted, Engine};
use model::lora::Lora;
use model::tokenizer::Tokenizer;
use model::{seeded, source};

/// Tokens that the tiny engine has room for.
pub(crate) const ROOM: usize = 4096;

fn parts() -> &'static (Arc<Tokenizer>, Decoder) {
    static PARTS: OnceLock<(Arc<Tokenizer>, Decoder)> = OnceLock::new();
    PARTS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        seeded::write_tiny(folder.path(), Family::Qwen3).unwrap();
        // Its own template knows no tools.
        let template = format!(
            "{{% if tools %}}{{{{ tools | tojson }}}}{{% endif %}}{}",
            seeded::CHAT_TEMPLATE
        );
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let source = source::resolve(&folder.path().display().to_string(), &mut |_| {}).unwrap();
        let tokenizer = Arc::new(Tokenizer::load(&source).unwrap());
        let decoder = Decoder::load(&source, DType::F32, &Device::Cpu).unwrap();
        (tokenizer, decoder)
    })
}

pub(crate) fn tiny_tokenizer() -> Arc<Tokenizer> {
    Arc::clone(&parts().0)
}

pub(crate) fn tiny_engine() -> Engine {
    Engine::new(parts().1.clone(), tiny_tokenizer(), ROOM).unwrap()
}

/// The tiny engine with adapters beside it, every number of which is seeded.
pub(crate) fn adapted_engine() -> (Engine, Adapted) {
    let lora = Lora {
        rank: 4,
        alpha: 6.0,
        targets: vec!["q_proj".into(), "down_proj".into()],
        layers: Vec::new(),
    };
    let mut decoder = parts().1.clone();
    for (name, variable) in decoder.add_adapters(&lora, 7).unwrap() {
        let numbers = seeded::tensor(&name, variable.dims()).unwrap();
        variable.set(&numbers).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    decoder.save_adapters(folder.path(), "tiny").unwrap();
    let mut engine = tiny_engine();
    let adapted = engine.add_adapters(folder.path()).unwrap();
    (engine, adapted)
}
