#!/usr/bin/env bash
# gradio 6.31.0: a client that sends the address of a file instead of uploading it.
#
# Expected: max_file_size limits what a client can bring onto the server, or addresses are refused.
# Seen: an upload beyond the limit is refused with 413. But if an event names an address on the
# internet in place of an uploaded file, the server downloads it, whatever its size, stores it in
# its cache, and passes it to the function. Private addresses are refused; public ones are not.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64 (the download is a stand-in, see below):
#   gradio 6.31.0
#   upload of 5,000 bytes with max_file_size=1000: 413
#   address in place of an upload: the server asked for https://example.com/a.bin
#   the function got 5,000 bytes
# Fails if 6.31.0 behaves otherwise. It downloads 100 MB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet gradio==6.31.0
GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import json
import urllib.request
from importlib.metadata import version

import gradio as gr
import httpx
from gradio import processing_utils

print("gradio", version("gradio"))
large = bytes(5_000)
asked = []


async def get(url, *args, **kwargs):  # stands for the internet
    asked.append(url)
    return httpx.Response(200, content=large)


processing_utils.async_ssrf_protected_get = get
with gr.Blocks() as page:
    file, size = gr.File(type="binary"), gr.Number()
    file.change(len, file, size)
_, address, _ = page.launch(max_file_size=1000, prevent_thread_lock=True, quiet=True, ssr_mode=False)

head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.bin"\r\n\r\n'
upload = urllib.request.Request(
    f"{address}gradio_api/upload",
    head + large + b"\r\n--x--\r\n",
    {"Content-Type": "multipart/form-data; boundary=x"},
)
try:
    status = urllib.request.urlopen(upload).status
except urllib.error.HTTPError as error:
    status = error.code
print(f"upload of {len(large):,} bytes with max_file_size=1000: {status}")
assert status == 413, "changed"

named = {"path": "https://example.com/a.bin", "meta": {"_type": "gradio.FileData"}}
event = json.dumps({"fn_index": 0, "session_hash": "x", "data": [named]}).encode()
urllib.request.urlopen(
    urllib.request.Request(
        f"{address}gradio_api/queue/join", event, {"Content-Type": "application/json"}
    )
).read()
got = None
with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=x") as stream:
    for line in stream:
        if b"process_completed" in line:
            got = json.loads(line.removeprefix(b"data: "))["output"].get("data")
            break
print("address in place of an upload: the server asked for", *asked)
print("the function got", *(f"{number:,} bytes" for number in got or ()))
assert asked == ["https://example.com/a.bin"] and got == [len(large)], "changed"
page.close(verbose=False)
PYTHON
