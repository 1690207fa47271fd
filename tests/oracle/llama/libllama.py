"""llama.cpp as a shared library, through ctypes: loads a GGUF file, gives logits.

The library comes from the npm package @node-llama-cpp/linux-x64 (tests/js), pinned by its lock
file. It has no C header with it, so the two parameter structs are opaque blobs here: the library
fills them with its defaults, and the few fields that are set are found at fixed offsets, each
checked first to hold its documented default. A release with another layout is refused, not misread.
"""
import ctypes
import glob
import os
import struct

import numpy as np

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), '..', '..', '..'))
PACKAGE = os.path.join(ROOT, 'tests', 'js', 'node_modules', '@node-llama-cpp', 'linux-x64')
GGML_F32, GGML_F16, GGML_Q8_0 = 0, 1, 8

# llama_context_params of this release: field -> (offset, format, default)
CONTEXT_FIELDS = {
    'n_ctx': (0, '<I', 512), 'n_batch': (4, '<I', 2048), 'n_ubatch': (8, '<I', 512),
    'n_seq_max': (12, '<I', 1), 'n_threads': (28, '<i', 4), 'n_threads_batch': (32, '<i', 4),
    'flash_attn_type': (52, '<i', -1), 'type_k': (104, '<i', GGML_F16),
    'type_v': (108, '<i', GGML_F16),
}


class Params(ctypes.Structure):
    """Larger than either parameter struct: passed by value, the rest is ignored."""
    _fields_ = [('bytes', ctypes.c_ubyte * 512)]

    def set(self, fields, **values):
        for name, (offset, form, default) in fields.items():
            found = struct.unpack_from(form, self.bytes, offset)[0]
            if found != default:
                raise RuntimeError(f'libllama: {name} at {offset} is {found}, expected {default}: '
                                   'not the release this script knows')
        for name, value in values.items():
            struct.pack_into(fields[name][1], self.bytes, fields[name][0], value)


class Batch(ctypes.Structure):
    _fields_ = [('n_tokens', ctypes.c_int32), ('token', ctypes.POINTER(ctypes.c_int32)),
                ('embd', ctypes.c_void_p), ('pos', ctypes.POINTER(ctypes.c_int32)),
                ('n_seq_id', ctypes.POINTER(ctypes.c_int32)),
                ('seq_id', ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
                ('logits', ctypes.POINTER(ctypes.c_int8))]


LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Llama:
    """The library. Errors it logs are kept in .log for messages."""

    def __init__(self, package=PACKAGE):
        folder = os.path.join(package, 'bins', 'linux-x64')
        found = glob.glob(os.path.join(folder, 'libllama.v*.so'))
        if not found:
            raise FileNotFoundError(f'{folder}: no libllama here (npm ci in tests/js)')
        version = os.path.basename(found[0])[len('libllama.'):]
        self.ggml = ctypes.CDLL(os.path.join(folder, 'libggml.' + version), ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(found[0])
        self._declare()
        self.log = []
        self.callback = LOG_CALLBACK(lambda level, text, _: self.log.append(text.decode()))
        self.lib.llama_log_set(self.callback, None)
        self.ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
        self.ggml.ggml_backend_load_all_from_path(folder.encode())
        self.lib.llama_backend_init()

    def _declare(self):
        lib, ptr, i32 = self.lib, ctypes.c_void_p, ctypes.c_int32
        for name, result, arguments in (
                ('llama_version', ctypes.c_char_p, []),
                ('llama_print_system_info', ctypes.c_char_p, []),
                ('llama_log_set', None, [LOG_CALLBACK, ptr]),
                ('llama_model_default_params', Params, []),
                ('llama_context_default_params', Params, []),
                ('llama_model_load_from_file', ptr, [ctypes.c_char_p, Params]),
                ('llama_init_from_model', ptr, [ptr, Params]),
                ('llama_model_free', None, [ptr]), ('llama_free', None, [ptr]),
                ('llama_model_get_vocab', ptr, [ptr]), ('llama_vocab_n_tokens', i32, [ptr]),
                ('llama_batch_init', Batch, [i32, i32, i32]), ('llama_batch_free', None, [Batch]),
                ('llama_decode', i32, [ptr, Batch]), ('llama_synchronize', None, [ptr]),
                ('llama_get_logits_ith', ctypes.POINTER(ctypes.c_float), [ptr, i32]),
                ('llama_get_memory', ptr, [ptr]),
                ('llama_memory_clear', None, [ptr, ctypes.c_bool]),
                ('llama_memory_seq_rm', ctypes.c_bool, [ptr, i32, i32, i32])):
            f = getattr(lib, name)
            f.restype, f.argtypes = result, arguments

    def fail(self, what):
        raise RuntimeError(f'{what}: {"".join(self.log[-12:])}')


class Session:
    """One context, of a model of its own or of another session's."""

    def __init__(self, llama, path, n_ctx=512, threads=2, kv_type=GGML_F32, flash=0, sequences=1,
                 share=None):
        """n_ctx: positions of all sequences together; share: a session that outlives this one"""
        self.llama, lib = llama, llama.lib
        self.shared = share is not None
        self.model = share.model if share else lib.llama_model_load_from_file(
            path.encode(), lib.llama_model_default_params())
        if not self.model:
            llama.fail(path)
        params = lib.llama_context_default_params()
        params.set(CONTEXT_FIELDS, n_ctx=n_ctx, n_seq_max=sequences, n_batch=n_ctx, n_ubatch=min(n_ctx, 512),
                   n_threads=threads, n_threads_batch=threads, type_k=kv_type, type_v=kv_type,
                   flash_attn_type=flash)
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            llama.fail(path)
        self.n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(n_ctx, 0, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        lib = self.llama.lib
        lib.llama_batch_free(self.batch)
        lib.llama_free(self.context)
        if not self.shared:
            lib.llama_model_free(self.model)

    def clear(self):
        lib = self.llama.lib
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def decode(self, tokens, position, all_logits):
        b = self.batch
        b.n_tokens = len(tokens)
        for i, t in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i] = t, position + i, 1
            b.seq_id[i][0] = 0
            b.logits[i] = all_logits or i + 1 == len(tokens)
        if self.llama.lib.llama_decode(self.context, b):
            self.llama.fail('llama_decode')
        self.llama.lib.llama_synchronize(self.context)

    def forget(self, position):
        """Drops what the first sequence holds from position on."""
        lib = self.llama.lib
        if not lib.llama_memory_seq_rm(lib.llama_get_memory(self.context), 0, position, -1):
            self.llama.fail('llama_memory_seq_rm')

    def step(self, tokens, position):
        """One token for each sequence, all at the same position; every row's logits."""
        b = self.batch
        b.n_tokens = len(tokens)
        for i, t in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = t, position, 1, 1
            b.seq_id[i][0] = i
        if self.llama.lib.llama_decode(self.context, b):
            self.llama.fail('llama_decode')
        self.llama.lib.llama_synchronize(self.context)

    def logits(self, tokens):
        """float32 [T, vocab]"""
        self.clear()
        self.decode(tokens, 0, True)
        get = self.llama.lib.llama_get_logits_ith
        return np.stack([np.ctypeslib.as_array(get(self.context, i), (self.n_vocab,)).copy()
                         for i in range(len(tokens))])
