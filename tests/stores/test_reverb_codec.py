"""The Reverb client without a server: tensors, trees, signatures, descriptions of tables."""

import collections
import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import cramjam
import hypothesis
import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from podracer.stores import reverb
from podracer.stores.reverb import sampler, structure, tensors, wire
from podracer.stores.reverb.errors import SignatureMismatch
from podracer.stores.reverb.structure import Checker, Spec
from podracer.stores.reverb.tables import Table

pytestmark = pytest.mark.quick

unhurried = hypothesis.settings(deadline=None)
_CODES = ("f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16", ml_dtypes.bfloat16)
NUMERIC = [np.dtype(code) for code in _CODES]


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from(NUMERIC))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    count = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=count, max_size=count)) if draw(st.booleans()) else bytes(count)
    if dtype.kind == "b":
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, dtype).reshape(shape)


def decoded(parts):
    return tensors.decode(wire.Tensor.FromString(b"".join(parts)))


@unhurried
@hypothesis.given(arrays(), st.sampled_from(["auto", "always", "never"]))
def test_an_array_comes_back_bit_for_bit(array, compression):
    back = decoded(tensors.encode(tensors.canonical(array), compression))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@unhurried
@hypothesis.given(hnp.arrays(object, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=st.binary(max_size=300)))
def test_strings_come_back_as_bytes(array):
    back = decoded(tensors.encode(tensors.canonical(array)))
    assert back.shape == array.shape
    assert back.dtype == object
    assert back.ravel().tolist() == array.ravel().tolist()


@unhurried
@hypothesis.given(st.binary(max_size=70_000))
def test_a_stored_block_is_one_that_every_snappy_decoder_reads(data):
    block = b"".join(tensors.stored_block(data))
    assert bytes(cramjam.snappy.decompress_raw(block)) == data
    assert tensors.uncompress(block).tobytes() == data


@unhurried
@hypothesis.given(st.binary(max_size=400), st.data())
def test_a_damaged_block_is_an_error_and_no_crash(data, draw):
    block = bytearray(cramjam.snappy.compress_raw(data))
    position = draw.draw(st.integers(0, len(block) - 1))
    block[position] ^= draw.draw(st.integers(1, 255))
    hypothesis.assume(wire.read_varint(bytes(block) + bytes(10), 0)[0] < 1e6)  # a length that asks for gigabytes
    with contextlib.suppress(ValueError):
        tensors.uncompress(bytes(block))


def test_incompressible_data_is_stored_and_decoded_without_a_copy():
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    frames = np.zeros(100_000, np.uint8)
    assert len(b"".join(tensors.compressed_block(noise))) == len(noise) + 8
    assert len(b"".join(tensors.compressed_block(frames))) < len(frames) / 10
    block = b"".join(tensors.stored_block(noise))
    assert np.shares_memory(tensors.uncompress(block), np.frombuffer(block, np.uint8))


@pytest.mark.parametrize("dtype", ["datetime64[s]", "V3"])
def test_a_dtype_that_reverb_cannot_carry_is_refused(dtype):
    with pytest.raises(TypeError, match="cannot carry"):
        tensors.canonical(np.zeros(2, dtype))


def test_views_and_foreign_byte_orders_are_sent_as_they_read():
    for array in (np.arange(12).reshape(3, 4).T, np.arange(12)[::2], np.arange(3, dtype=">i4")):
        np.testing.assert_array_equal(decoded(tensors.encode(tensors.canonical(array))), array)


@unhurried
@hypothesis.given(hnp.arrays(st.sampled_from(["u1", "i4", "i8"]), (4, 3)))
def test_delta_encoding_is_undone(array):
    unsigned = array.view(f"u{array.itemsize}")
    differences = np.concatenate([unsigned[:1], unsigned[1:] - unsigned[:-1]]).view(array.dtype)
    np.testing.assert_array_equal(tensors.undo_delta(differences), array)


Pair = collections.namedtuple("Pair", ["left", "right"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    reward: object
    observation: object


def tree():
    return Step(
        reward=np.float32(1),
        observation={"b": (np.zeros(2), [np.ones((3, 1), np.uint8)]), "a": Pair(left=None, right=np.int32(4)), "empty": ()},
    )


def test_trees_are_taken_apart_and_put_together():
    leaves = structure.flatten(tree())
    paths = [path for path, _ in leaves]
    assert paths == [".reward", ".observation['a'].right", ".observation['b'][0]", ".observation['b'][1][0]"]
    again = structure.rebuild(tree(), iter([leaf for _, leaf in leaves]))
    assert isinstance(again, Step)
    assert isinstance(again.observation["a"], Pair)
    assert str(structure.flatten(again)) == str(leaves)


def test_a_signature_survives_the_wire():
    signature = structure.signature_of(tree())
    back = structure.from_wire(structure.to_wire(signature))
    assert structure.flatten(back) == structure.flatten(signature)
    assert type(back).__name__ == "Step"
    open_shapes = {"x": Spec((None, 3), np.int8), "y": Spec(None, np.float32, "named")}
    assert structure.from_wire(structure.to_wire(open_shapes)) == open_shapes


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": np.zeros(3, np.float32)}, "missing ['y']"),
        ({"x": np.zeros(3, np.float32), "y": np.zeros((1, 2), np.int8), "z": 0}, "unknown ['z']"),
        ({"x": np.zeros(3, np.float64), "y": np.zeros((1, 2), np.int8)}, "['x'] is float64[3]; table 't' holds float32[3]"),
        ({"x": np.zeros(3, np.float32), "y": np.zeros((1, 3), np.int8)}, "['y'] is int8[1, 3]; table 't' holds int8[?, 2]"),
    ],
)
def test_what_does_not_fit_a_signature_is_named_in_one_line(change, text):
    checker = Checker({"x": Spec((3,), np.float32), "y": Spec((None, 2), np.int8)}, "table 't'")
    checker.check(structure.flatten({"x": np.zeros(3, np.float32), "y": np.zeros((5, 2), np.int8)}))
    with pytest.raises(SignatureMismatch) as error:
        checker.check(structure.flatten(change))
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_columns_are_put_together_from_slices_of_chunks():
    first, second = np.arange(8).reshape(4, 2), np.arange(8, 14).reshape(3, 2)
    entry = wire.SampleStreamResponse.SampleEntry()
    for key, array in ((7, first), (9, second)):
        chunk = entry.data.add(chunk_key=key)
        chunk.data.tensors.add().MergeFromString(b"".join(tensors.encode(array)))
    column = entry.info.item.flat_trajectory.columns.add()
    column.chunk_slices.add(chunk_key=7, offset=2, length=2, index=0)
    column.chunk_slices.add(chunk_key=9, offset=0, length=1, index=0)
    squeezed = entry.info.item.flat_trajectory.columns.add(squeeze=True)
    squeezed.chunk_slices.add(chunk_key=9, offset=2, length=1, index=0)
    window, last = sampler._columns(entry.info.item.flat_trajectory, [entry])
    np.testing.assert_array_equal(window, np.arange(4, 10).reshape(3, 2))
    np.testing.assert_array_equal(last, [12, 13])


def test_a_description_of_a_table_survives_json():
    signature = {"x": np.zeros((2, 3), np.float32)}
    for table in (
        Table.queue("q", 3, signature),
        Table.uniform("u", 10, min_size=2, samples_per_insert=4.0),
        Table.prioritized("p", 10, exponent=0.9),
    ):
        values = json.loads(json.dumps(table.to_json()))
        assert Table.from_json(values) == dataclasses.replace(table, signature=structure.from_wire(_wire(table.signature)))
    assert Table.parse("p=prioritized:10:exponent=0.9") == Table.prioritized("p", 10, exponent=0.9)
    assert Table.parse("u=uniform:1e1:min_size=2:samples_per_insert=4") == Table.uniform(
        "u", 10, min_size=2, samples_per_insert=4.0
    )


def _wire(signature):
    return structure.to_wire(None if signature is None else structure.signature_of(signature))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Table.queue("", 3),
        lambda: Table.queue("q", 0),
        lambda: Table.uniform("u", 5, min_size=6),
        lambda: Table.uniform("u", 5, samples_per_insert=4.0, tolerance=1.0),
        lambda: Table(name="x", sampler="best", remover="fifo", max_size=1),
        lambda: Table.parse("nothing"),
        lambda: Table.parse("q=queue:3:depth=4"),
        lambda: Table.from_json({"name": "q", "colour": 3}),
    ],
)
def test_a_table_that_cannot_be_is_refused(make):
    with pytest.raises(ValueError, match=r"table|'"):
        make()


def test_the_descriptors_are_those_of_the_proto():
    text = re.sub(r"//[^\n]*", "", Path(wire.__file__).with_name("wire.proto").read_text())
    written = sorted((name, int(number)) for name, number in re.findall(r"(\w+) = (\d+);", text))
    built = []

    def collect(descriptor):
        if not descriptor.GetOptions().map_entry:
            built.extend((field.name, field.number) for field in descriptor.fields)
        for nested in descriptor.nested_types:
            collect(nested)

    for descriptor in wire.Tensor.DESCRIPTOR.file.message_types_by_name.values():
        collect(descriptor)
    assert sorted(built) == written


def test_neither_jax_nor_tensorflow_is_imported():
    code = "import sys, podracer.stores.reverb; print([m for m in ('jax', 'tensorflow', 'reverb') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert set(reverb.__all__) <= set(dir(reverb))
