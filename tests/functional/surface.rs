//! What the engine can do, through the clients that people use.

use fulmar_tests::{Device, root};

#[test]
fn the_openai_package_completes_embeds_samples_and_constrains() {
    let device = Device::serving(&root().join("packaging/demo-model/fulmar-demo.gguf"), &[]);
    device.run_client("openai_generation.py");
    let log = fulmar_tests::fulmar_ok(&[
        "audit",
        "list",
        "--json",
        "--limit",
        "1000",
        "--dir",
        fulmar_tests::text(&device.dir()),
    ]);
    for endpoint in ["/v1/embeddings", "/v1/completions", "/v1/chat/completions"] {
        assert!(log.contains(endpoint), "{endpoint} is recorded");
    }
}

#[test]
fn the_openai_package_chooses_which_tool_is_called() {
    let device = Device::serving(&root().join("packaging/demo-model/fulmar-demo.gguf"), &[]);
    device.run_client("openai_tools.py");
}
