"""Every set of kernels this machine can run, bit for bit against the NumPy twins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agent.compute import kernels
from agent.compute.damage_twins import Stream, philox
from agent.compute.kernels import Implementation
from planner.types import Codec

TWINS = kernels.implementations()["numpy"]
ALL = list(kernels.available())
PACKED: list[Codec] = ["fp16", "bf16", "int8", "int4"]
CODECS: list[Codec] = ["fp32", *PACKED]

AWKWARD = np.array(
    [
        *(0x00000000, 0x00000001, 0x007FFFFF, 0x00800000, 0x33000000, 0x33000001, 0x32FFFFFF, 0x33C00000),
        *(0x387FC000, 0x387FE000, 0x387FFFFF, 0x38800000, 0x3F801000, 0x3F803000, 0x3F808000, 0x3F818000),
        *(0x477FE000, 0x477FE001, 0x477FEFFF, 0x477FF000, 0x47800000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF),
        *(0x7F800000, 0x7F800001, 0x7F801FFF, 0x7FBFFFFF, 0x7FC00000, 0x7FC12345, 0x7FFFFFFF),
    ],
    np.uint32,
)


@pytest.fixture(params=ALL)
def using(request: pytest.FixtureRequest) -> Implementation:
    return kernels.implementations()[request.param]


def awkward_values(size: int, seed: int) -> np.ndarray:
    """Any bits: signs, subnormals, halfway cases, overflows, infinities, quiet and signalling NaNs."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, size, dtype=np.uint32)
    bits = np.where(rng.random(size) < 0.5, rng.choice(AWKWARD, size) | (bits & np.uint32(1 << 31)), bits)
    return bits.view(np.float32)


def unaligned(values: np.ndarray, offset: int) -> np.ndarray:
    """The same values `offset` bytes behind an aligned address."""
    room = np.zeros(values.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    moved = room[start : start + values.nbytes].view(values.dtype)
    moved[:] = values
    return moved


def bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


@pytest.mark.parametrize("codec", PACKED)
def test_pack_and_unpack_at_every_length_and_alignment(using: Implementation, codec: Codec) -> None:
    for size in range(201):
        values = awkward_values(size, size)
        expected, clipped = kernels.pack_counted(values, codec, using=TWINS)
        values = unaligned(values, size % 5)
        out = unaligned(np.empty_like(expected), size % 3)
        payload, counted = kernels.pack_counted(values, codec, out, using=using)
        np.testing.assert_array_equal(payload, expected)
        assert counted == clipped
        unpacked = kernels.unpack(payload, codec, (size,), using=using)
        np.testing.assert_array_equal(bits(unpacked), bits(kernels.unpack(expected, codec, (size,), using=TWINS)))


def test_every_half_and_what_lies_between(using: Implementation) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    values = kernels.unpack(halves.view(np.uint8), "fp16", (halves.size,), using=using)
    np.testing.assert_array_equal(
        bits(values), bits(kernels.unpack(halves.view(np.uint8), "fp16", (halves.size,), using=TWINS))
    )
    for step in (0x0FFF, 0x1000, 0x1001):
        between = (bits(values) + np.uint32(step)).view(np.float32)
        np.testing.assert_array_equal(
            kernels.pack(between, "fp16", using=using), kernels.pack(between, "fp16", using=TWINS)
        )


@pytest.mark.parametrize("codec", PACKED)
def test_large_outputs_that_bypass_the_cache(using: Implementation, codec: Codec) -> None:
    values = awkward_values((2 << 20) + 37, 3).reshape(1, 1, -1)
    expected, clipped = kernels.pack_counted(values, codec, using=TWINS)
    for offset in (0, 1, 2, 34):
        out = unaligned(np.empty_like(expected), offset)
        payload, counted = kernels.pack_counted(values, codec, out, using=using)
        assert payload is out
        assert (payload == expected).all()
        assert counted == clipped


def test_rows_of_the_smallest_subnormals(using: Implementation) -> None:
    """Their scale is off by up to a half, so that quotients beyond ±127 must be clipped."""
    values = (np.arange(190 * 3, dtype=np.uint32).reshape(3, 190) % 191).view(np.float32)
    values[1] *= -1
    expected = kernels.pack(values, "int8", using=TWINS)
    np.testing.assert_array_equal(kernels.pack(values, "int8", using=using), expected)
    assert {127, -127} <= set(expected[: values.size].view(np.int8).tolist())


@pytest.mark.parametrize("boundary", ["fp16", "bf16"])
def test_rounding_is_pack_and_unpack(using: Implementation, boundary: Any) -> None:
    for size in [*range(40), 200, 4096]:
        values = awkward_values(size, size)
        payload, clipped = kernels.pack_counted(values, boundary, using=using)
        rounded = unaligned(values, size % 5)
        assert kernels.round_to_boundary(rounded, boundary, using=using) == clipped
        np.testing.assert_array_equal(bits(rounded), bits(kernels.unpack(payload, boundary, (size,), using=using)))
        assert kernels.pack_counted(rounded, boundary, using=using)[1] == 0


def test_fp32_is_left_as_it_is(using: Implementation) -> None:
    values = awkward_values(99, 0).reshape(3, 33)
    assert kernels.round_to_boundary(values, "fp32", using=using) == 0
    payload = kernels.pack(values, "fp32", using=using)
    assert payload.tobytes() == values.tobytes()
    np.testing.assert_array_equal(bits(kernels.unpack(payload, "fp32", (3, 33), using=using)), bits(values))


@pytest.mark.parametrize("codec", CODECS)
def test_any_buffer_is_unpacked_into_a_given_array(using: Implementation, codec: Codec) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 20)).astype(np.float32)
    payload = kernels.pack(values, codec, using=using)
    out = np.empty((2, 3, 20), np.float32)
    for buffer in (payload.tobytes(), bytearray(payload), memoryview(payload), payload):
        out[:] = np.nan
        assert kernels.unpack(buffer, codec, (2, 3, 20), out, using=using) is out
        np.testing.assert_allclose(out, values, rtol=1e-2, atol=0.3 if codec == "int4" else 2e-2)


def test_erasure_is_the_definition(using: Implementation) -> None:
    """Element e is lost if its 16 + 16 bits, as a number, are below p * 2^32. Ties are frequent enough to be seen."""
    tokens, width = 40, 1027
    shape = (tokens, -(-width // 8))
    upper = philox(11, 3, 100, shape, Stream.ERASURE).view(np.uint16)[:, :width].astype(np.uint64)
    lower = philox(11, 3, 100, shape, Stream.ERASURE_TIE).view(np.uint16)[:, :width].astype(np.uint64)
    tied = int(upper[17, 500] << 16 | lower[17, 500])
    for threshold in (0, 1, 0x8000, tied, tied + 1, tied | 0xFFFF, 2**31, 2**32 - 1, 2**32):
        expected = np.where((upper << 16 | lower) < threshold, np.float32(0), np.float32(1))
        values = np.ones((tokens, width), np.float32)
        kernels.erase(values, threshold / 2**32, 11, 3, 100, using=using)
        np.testing.assert_array_equal(values, expected)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(ALL),
    tokens=st.integers(1, 5),
    width=st.integers(1, 600),
    place=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 6)),
    damaged=st.tuples(st.floats(0, 1), st.booleans()),
)
def test_damage_is_the_twins_and_independent_of_the_split(
    name: str, tokens: int, width: int, place: tuple[int, int, int], damaged: tuple[float, bool]
) -> None:
    (seed, layer, position), (p, rescale) = place, damaged
    using = kernels.implementations()[name]
    values = np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32)

    def damage(part: np.ndarray, at: int, implementation: Implementation) -> None:
        kernels.erase(part, p, seed, layer, at, rescale=rescale, using=implementation)
        kernels.add_noise(part, p, seed, layer, at, using=implementation)

    expected, whole, split = values.copy(), values.copy(), values.copy()
    damage(expected, position, TWINS)
    damage(whole, position, using)
    for token in range(tokens):
        damage(split[token : token + 1], position + token, using)
    np.testing.assert_array_equal(bits(whole), bits(expected))
    np.testing.assert_array_equal(bits(split), bits(expected))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.93])
def test_erasure_rate_is_binomial(using: Implementation, p: float) -> None:
    values = np.ones((256, 1024), np.float32)
    kernels.erase(values, p, 5, 1, 0, using=using)
    lost = int(np.count_nonzero(values == 0))
    assert abs(lost - p * values.size) < 4 * np.sqrt(values.size * p * (1 - p))
    per_element = (values == 0).sum(axis=0)
    spread = ((per_element - 256 * p) ** 2).sum() / (256 * p * (1 - p))
    assert 1e-4 < stats.chi2.cdf(spread, df=1024) < 1 - 1e-4


def test_erasure_depends_on_seed_layer_position_and_stream(using: Implementation) -> None:
    def mask(seed: int, layer: int, position: int) -> np.ndarray:
        values = np.ones((1, 4096), np.float32)
        kernels.erase(values, 0.5, seed, layer, position, using=using)
        return values[0] == 0

    masks = [mask(1, 1, 1), mask(2, 1, 1), mask(1 << 32 | 1, 1, 1), mask(1, 2, 1), mask(1, 1, 2)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs(np.count_nonzero(one == other) - 2048) < 4.5 * 32


def test_rescaling_keeps_the_mean_and_the_extremes_are_exact(using: Implementation) -> None:
    values = np.ones((64, 4096), np.float32)
    kernels.erase(values, 0.25, 9, 0, 0, rescale=True, using=using)
    assert set(np.unique(values)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(values.mean() - 1) < 0.01
    odd = awkward_values(512, 4).reshape(2, 256)
    kept = odd.copy()
    kernels.erase(kept, 0.0, 9, 0, 0, rescale=True, using=using)
    np.testing.assert_array_equal(bits(kept), bits(odd))
    kernels.erase(kept, 1.0, 9, 0, 0, rescale=True, using=using)
    np.testing.assert_array_equal(bits(kept), 0)


def test_noise_is_normal(using: Implementation) -> None:
    noise = np.zeros((64, 4096), np.float32)
    kernels.add_noise(noise, 1.0, 5, 2, 0, using=using)
    drawn = noise.reshape(-1).astype(np.float64)
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 4 * np.sqrt(2 / drawn.size)
    assert stats.kstest(drawn, stats.norm.cdf).pvalue > 1e-3
    neighbours = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(drawn.size)


def test_noise_is_scaled_and_added_in_fp32(using: Implementation) -> None:
    noise = np.zeros((3, 50), np.float32)
    kernels.add_noise(noise, 1.0, 5, 2, 7, using=using)
    values = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    noisy = values.copy()
    kernels.add_noise(noisy, 0.3, 5, 2, 7, using=using)
    np.testing.assert_array_equal(bits(noisy), bits(values + np.float32(0.3) * noise))


def test_damage_is_what_it_was_in_every_release(using: Implementation) -> None:
    """Stored sums: recorded damage schedules must replay on any machine, and with any later version.

    The same numbers are in csrc/tests/kernels_test.cpp, which also runs on AArch64.
    """
    values = np.ones((3, 1001), np.float32)
    kernels.erase(values, 0.3, 0x123456789ABCDEF0, 17, 1000, using=using)
    values *= np.float32(1.5)
    assert kernels.crc32c(values) == ERASED_SUM
    noise = np.zeros((3, 1001), np.float32)
    kernels.add_noise(noise, 0.7, 0x123456789ABCDEF0, 17, 1000, using=using)
    assert kernels.crc32c(noise) == NOISE_SUM


ERASED_SUM = 0x614F4A4F
NOISE_SUM = 0x9E82AF28


def test_crc_at_every_length_and_alignment(using: Implementation) -> None:
    data = np.random.default_rng(0).integers(0, 256, 30_000, dtype=np.uint8)
    for size in [*range(70), 255, 256, 767, 768, 769, 6143, 6144, 6145, 7000, 20_000]:
        for start in (0, 1, 7):
            part = data[start : start + size]
            crc = kernels.crc32c(part, 99, using=TWINS)
            assert kernels.crc32c(part, 99, using=using) == crc
            assert kernels.crc32c(memoryview(part), 99, using=using) == crc
            head = kernels.crc32c(part[: size // 3], 99, using=using)
            assert kernels.crc32c(part[size // 3 :], head, using=using) == crc
    assert kernels.crc32c(b"123456789", using=using) == 0xE3069283


GOOD = np.zeros((2, 8), np.float32)
READ_ONLY = np.frombuffer(bytes(64), np.float32).reshape(2, 8)
Call = Callable[[Implementation], object]
MISTAKES: list[tuple[str, Call]] = [
    ("dtype float64", lambda u: kernels.pack(np.zeros(4), "fp16", using=u)),  # type: ignore[arg-type]
    ("dtype float64", lambda u: kernels.round_to_boundary(np.zeros(4), "bf16", using=u)),  # type: ignore[arg-type]
    ("float32", lambda u: kernels.pack(np.zeros(4), "fp32", using=u)),  # type: ignore[arg-type]
    ("C-contiguous", lambda u: kernels.pack(GOOD[:, ::2], "fp16", using=u)),
    ("C-contiguous", lambda u: kernels.pack(GOOD.T, "int8", using=u)),
    ("C-contiguous", lambda u: kernels.erase(GOOD[:, :4], 0.1, 0, 0, 0, using=u)),
    ("at least one dimension", lambda u: kernels.pack(np.array(1, np.float32), "bf16", using=u)),
    ("writeable", lambda u: kernels.round_to_boundary(READ_ONLY, "fp16", using=u)),
    ("writeable", lambda u: kernels.add_noise(READ_ONLY, 0.1, 0, 0, 0, using=u)),
    ("writeable", lambda u: kernels.pack(GOOD, "fp16", READ_ONLY.reshape(-1).view(np.uint8)[:32], using=u)),
    ("31 bytes, 32 expected", lambda u: kernels.pack(GOOD, "fp16", np.empty(31, np.uint8), using=u)),
    ("65 bytes, 64 expected", lambda u: kernels.pack(GOOD, "fp32", np.empty(65, np.uint8), using=u)),
    ("dtype int8", lambda u: kernels.pack(GOOD, "int8", np.empty(24, np.int8), using=u)),  # type: ignore[arg-type]
    ("33 bytes, 32 expected", lambda u: kernels.unpack(bytes(33), "fp16", (2, 8), using=u)),
    ("0 bytes, 32 expected", lambda u: kernels.unpack(b"", "bf16", (2, 8), using=u)),
    ("16 bytes, 24 expected", lambda u: kernels.unpack(bytes(16), "int8", (2, 8), using=u)),
    ("32 bytes, 64 expected", lambda u: kernels.unpack(bytes(32), "fp32", (2, 8), using=u)),
    ("contiguous", lambda u: kernels.unpack(memoryview(bytes(64))[::2], "fp16", (2, 8), using=u)),
    ("contiguous", lambda u: kernels.crc32c(GOOD.view(np.uint8)[:, ::2], using=u)),
    ("shape", lambda u: kernels.unpack(bytes(32), "fp16", (2, 8), np.empty((8, 2), np.float32), using=u)),
    ("codec", lambda u: kernels.pack(GOOD, "fp8", using=u)),  # type: ignore[arg-type]
    ("codec", lambda u: kernels.unpack(b"", "fp8", (1,), using=u)),  # type: ignore[arg-type]
    ("boundary type", lambda u: kernels.round_to_boundary(GOOD, "int8", using=u)),  # type: ignore[arg-type]
    ("tokens, hidden size", lambda u: kernels.erase(GOOD.reshape(1, 2, 8), 0.1, 0, 0, 0, using=u)),
    ("a probability", lambda u: kernels.erase(GOOD, 1.5, 0, 0, 0, using=u)),
    ("a probability", lambda u: kernels.erase(GOOD, float("nan"), 0, 0, 0, using=u)),
    ("sigma", lambda u: kernels.add_noise(GOOD, float("inf"), 0, 0, 0, using=u)),
    ("seed", lambda u: kernels.erase(GOOD, 0.1, 1 << 64, 0, 0, using=u)),
    ("layer -1", lambda u: kernels.erase(GOOD, 0.1, 0, -1, 0, using=u)),
    ("position: beyond", lambda u: kernels.erase(GOOD, 0.1, 0, 0, (1 << 32) - 1, using=u)),
]


@pytest.mark.parametrize(("text", "call"), MISTAKES)
def test_mistakes_are_named(using: Implementation, text: str, call: Call) -> None:
    with pytest.raises(ValueError, match=text):
        call(using)
    np.testing.assert_array_equal(GOOD, 0)


def active_with(**environment: str) -> subprocess.CompletedProcess[str]:
    code = "from agent.compute import kernels; print(kernels.active(), *kernels.available())"
    clean = {name: value for name, value in os.environ.items() if name not in {"EDGE_NATIVE", "EDGE_FORCE_KERNEL"}}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False)


def test_the_environment_chooses() -> None:
    native = active_with().stdout.split()
    assert native[0] == native[1]
    assert native[-1] == "numpy"
    assert active_with(EDGE_NATIVE="off").stdout.split() == ["numpy", "numpy"]
    for name in native[1:]:
        assert active_with(EDGE_FORCE_KERNEL=name).stdout.split()[0] == name
    refused = active_with(EDGE_FORCE_KERNEL="mmx")
    assert refused.returncode != 0
    assert "EDGE_FORCE_KERNEL=mmx: this machine can run" in refused.stderr
