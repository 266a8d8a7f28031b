"""The hub, seen by `huggingface_hub`: what it fetches is what fulmar fetched."""

import hashlib
import os
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

SHA256 = os.environ["SHA256"]


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


one = hf_hub_download("acme/tiny", "tiny-Q8_0.gguf", revision="v1")
assert sha256(one) == SHA256
assert os.environ["COMMIT"] in str(one), one
whole = snapshot_download("acme/tiny", revision=os.environ["COMMIT"])
assert sha256(Path(whole) / "tiny-Q8_0.gguf") == SHA256
assert (Path(whole) / "README.md").read_text() == "A tiny model.\n"
# The list that fulmar asks for is the one that the hub's own client asks for and reads.
found = list(HfApi().list_models(
    search="tiny", filter="gguf", sort="downloads", limit=5, expand=["siblings", "gguf", "tags"]))
assert [model.id for model in found] == ["acme/tiny"], found
assert "tiny-Q8_0.gguf" in [file.rfilename for file in found[0].siblings]
assert found[0].gguf["architecture"] == "qwen3", found[0].gguf
try:
    hf_hub_download("acme/other", "README.md", token=False)
except HfHubHTTPError:
    pass
else:
    raise AssertionError("a private repository was read without a token")
