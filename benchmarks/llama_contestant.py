"""llama.cpp as a contestant: in one process, or over RPC servers that hold even shares of the layers.

Imports nothing of ours; run by an interpreter that has llama-cpp-python. A server is this file too, for the wheel
has the RPC library but no program around it: one CPU device with as many threads as it is told.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CPU_DEVICE = 0
"""GGML_BACKEND_DEVICE_TYPE_CPU."""
CONTEXT = 512
SERVER_PATIENCE_S = 20.0


class Llama:
    """A model and a context of `streams` sequences; raises RuntimeError when llama.cpp refuses."""

    def __init__(self, path: Path, threads: int, streams: int, servers: Sequence[str] = ()) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        # Loading prints a page; a callback that outlives the load keeps it quiet.
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        if servers:
            self._spread(settings, servers)
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise RuntimeError(f"{path}: llama.cpp does not load it")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_seq_max = CONTEXT * streams, streams
        context.n_threads, context.n_threads_batch = threads, threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError(f"{path}: no context of {streams} sequences")
        self._vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))

    def decode(
        self, tokens: Sequence[Sequence[int]], position: int, *, first: int = 0, every: bool = False
    ) -> np.ndarray:
        """Take tokens [n][m] at `position` of the sequences from `first` on.

        Logits of each one's last token, [n, V], or of `every` token: valid until the next call.
        """
        api, count = self._api, sum(map(len, tokens))
        batch = api.llama_batch_init(count, 0, 1)
        try:
            index = 0
            for sequence, row in enumerate(tokens, first):
                for offset, token in enumerate(row):
                    batch.token[index], batch.pos[index] = int(token), position + offset
                    batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                    batch.logits[index] = every or offset == len(row) - 1
                    index += 1
            batch.n_tokens = count
            code = api.llama_decode(self._context, batch)
        finally:
            api.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code} for {count} tokens")
        shape = (count if every else len(tokens), self._vocabulary)
        return np.ctypeslib.as_array(api.llama_get_logits(self._context), shape)

    def clear(self) -> None:
        """Forget every sequence."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)

    def _spread(self, settings: Any, servers: Sequence[str]) -> None:
        """Give every layer, and the head, to the servers: even shares, in order. The embedding stays here."""
        base, rpc = _library("ggml-base"), _library("ggml-rpc")
        rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
        base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
        base.ggml_backend_reg_dev_get.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        registries = [rpc.ggml_backend_rpc_add_server(server.encode()) for server in servers]
        if not all(registries):
            raise RuntimeError(f"no RPC server at one of {', '.join(servers)}")
        devices = [base.ggml_backend_reg_dev_get(registry, 0) for registry in registries]
        self._devices = (ctypes.c_void_p * (len(devices) + 1))(*devices, None)
        self._shares = (ctypes.c_float * self._api.llama_max_devices())(*[1.0] * len(devices))
        settings.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        settings.tensor_split = self._shares
        settings.n_gpu_layers = 999


@contextlib.contextmanager
def servers(count: int, threads: int) -> Iterator[list[str]]:
    """Endpoints of `count` RPC servers on this machine, each a process with `threads` threads."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    endpoints = [f"127.0.0.1:{one.getsockname()[1]}" for one in held]
    for one in held:
        one.close()
    command = [sys.executable, __file__, "--threads", str(threads), "--serve"]
    running = [
        subprocess.Popen([*command, endpoint], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for endpoint in endpoints
    ]
    try:
        for endpoint in endpoints:
            _wait_for(endpoint)
        yield endpoints
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=10)


def _wait_for(endpoint: str) -> None:
    host, port = endpoint.split(":")
    deadline_s = time.monotonic() + SERVER_PATIENCE_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"no RPC server at {endpoint} after {SERVER_PATIENCE_S:.0f} s")
        time.sleep(0.05)


def serve(endpoint: str, threads: int) -> None:
    """Never returns."""
    library, rpc = _library("ggml"), _library("ggml-rpc")
    library.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    device = library.ggml_backend_dev_by_type(CPU_DEVICE)
    start = rpc.ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    devices = (ctypes.c_void_p * 1)(device)
    start(endpoint.encode(), None, threads, 1, ctypes.cast(devices, ctypes.c_void_p))


def _library(name: str) -> Any:
    import llama_cpp

    return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / f"lib{name}.so"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", required=True, metavar="HOST:PORT")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    serve(options.serve, options.threads)


if __name__ == "__main__":
    main()
