"""nocopy_model.h: it compiles without a warning, and a compiled guest's session is Python's."""

from __future__ import annotations

from pathlib import Path

import pytest

from nocopy.interfaces.host import DeviceGuest
from nocopy.models import open_model
from nocopy.session.language import LanguageModel
from tests.models.tiny import write_tiny
from tests.sdk.test_header import EVERYTHING
from tools.guest_compiler import WASI, compile_guest

PROGRAM = """\
#include <stdio.h>
#include "nocopy_model.h"

#define CHECK(call) if ((call) < 0) return printf("%s: %d\\n", #call, __LINE__), 1

int main(void) {
    nc_session s, t;
    nocopy_generation options = nocopy_generation_default();
    int32_t model, i, best = 0, length, vocabulary;
    uint64_t at;
    char *text, *info;
    const float *logits;
    CHECK(model = nc_model("default"));
    if (!(info = nc_info(model))) return 1;
    CHECK(nc_open(&s, model, 128, NOCOPY_F32));
    CHECK(length = nc_append_text(&s, "Hello, world", NOCOPY_TOKENIZE_ADD_SPECIAL));
    CHECK(vocabulary = nocopy_session_logits(s.handle, &at));
    logits = (const float *)(uintptr_t)at;
    if ((char *)logits < (char *)s.region || (char *)logits >= (char *)s.region + s.bytes) return 2;
    for (i = 0; i < vocabulary; i++)
        if (logits[i] > logits[best]) best = i;
    CHECK(nc_fork(&t, &s));
    options.temperature = 0;
    options.flags = NOCOPY_GENERATE_IGNORE_END;
    if (!(text = nc_generate_text(&t, &options, 8))) return 3;
    printf("%d %d %d %s\\n", (int)length, (int)best, (int)(nocopy_session_length(t.handle) - length), text);
    free(text);
    CHECK(nc_close(&t));
    CHECK(nc_constrain(&s, NOCOPY_CONSTRAINT_REGEX, "(ja|nein)"));
    if (!(text = nc_generate_text(&s, &options, 8))) return 4;
    printf("%s %u\\n", text, (unsigned)options.finish);
    free(text);
    CHECK(nc_close(&s));
    if (nc_open(&s, model, 1u << 30, NOCOPY_F32) != NOCOPY_ERROR_USAGE || s.region) return 5;
    if (nc_open(&s, model, 128, NOCOPY_I32) != NOCOPY_ERROR_USAGE) return 6;
    CHECK(nocopy_model_close(model));
    free(info);
    return 0;
}
"""


@pytest.mark.parametrize(
    ("language", "standard"), [("cc", "c99"), ("cc", "c23"), ("c++", "c++11"), ("c++", "c++20")]
)
def test_compiles_without_warnings(tmp_path: Path, language: str, standard: str) -> None:
    source = tmp_path / ("guest.c" if language == "cc" else "guest.cpp")
    source.write_text('#include "nocopy_model.h"\n#include "nocopy_model.h"\nint main(void) { return 0; }\n')
    flags = (*EVERYTHING, f"-std={standard}")
    compile_guest([source], tmp_path / "guest.wasm", target=WASI, language=language, flags=flags)


def test_a_compiled_guest_generates_what_python_does(tmp_path: Path) -> None:
    (tmp_path / "guest.c").write_text(PROGRAM)
    module = compile_guest([tmp_path / "guest.c"], tmp_path / "guest.wasm")
    path = write_tiny(tmp_path / "tiny.gguf")
    with DeviceGuest(module, device="reference", models={"default": path}, stdout="capture") as guest:
        guest.run()
        said = guest.stdout.split(b"\n")
        assert guest.ledger.copied == 0
    tokenizer = open_model(path).tokenizer
    prompt = tokenizer.encode("Hello, world")
    drawn = greedy(path, prompt, 8)
    text = b"".join(map(tokenizer.piece, drawn))
    assert said[0] == b"%d %d 8 %s" % (len(prompt), drawn[0], text.split(b"\n")[0].split(b"\0")[0])
    assert said[-2] in (b"ja 2", b"nein 2")


def greedy(path: Path, prompt: list[int], count: int) -> list[int]:
    """What the model says, from Python, with an f32 cache."""
    with LanguageModel(path, device="reference", context=128, kv="f32") as model:
        session = model.session()
        session.append(prompt)
        drawn: list[int] = []
        for _ in range(count):
            drawn.append(int(session.logits.argmax()))
            session.append(drawn[-1:])
        return drawn
