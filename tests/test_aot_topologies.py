"""Topologies by name, the roofline by hand, and XLA's words."""

import pytest

from podracer.aot import compiled, compilers, roofline, topologies
from podracer.aot.cost import Collective, Cost
from podracer.config import ConfigError

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("name", "shape", "chips", "slices", "hosts", "devices"),
    [
        ("v5e-1", "1x1", 1, 1, 1, 1),
        ("v5e-8", "2x4", 8, 1, 1, 8),
        ("v5e-256", "16x16", 256, 1, 64, 256),
        ("v6e-2048", "16x16", 2048, 8, 512, 2048),
        ("v5p-8", "2x2x1", 4, 1, 1, 4),
        ("v5p-4096", "8x16x16", 2048, 1, 512, 2048),
        ("v4-16", "2x2x2", 8, 1, 2, 16),
        ("v5p:2x2x4", "2x2x4", 16, 1, 4, 16),
        ("h100-4", "", 4, 1, 1, 4),
        ("h100-64", "", 64, 8, 8, 64),
    ],
)
def test_names(name, shape, chips, slices, hosts, devices):
    found = topologies.find(name)
    assert (found.shape, found.num_chips, found.num_slices, found.num_hosts) == (shape, chips, slices, hosts)
    assert found.num_devices == devices == found.devices_per_host * hosts


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("v5e-7", "try v5e-8"),
        ("v5e-300", "try v5e-256"),
        ("v5p-7", "try v5p-8"),
        ("v5p-0", "try v5p-8"),
        ("h100-12", "try h100-8 or h100-16"),
        ("h100:2x2", "write v5e-N"),
        ("tpu", "write v5e-N"),
    ],
)
def test_refusals_say_what_there_is(name, line):
    with pytest.raises(ConfigError, match=line) as error:
        topologies.find(name)
    assert "\n" not in str(error.value)


def test_this_host():
    here = topologies.here()
    assert (here.num_chips, here.num_hosts, here.chip.platform) == (8, 1, "cpu")
    assert len(here.devices()) == 8


def test_roofline_by_hand():
    cost = Cost(
        matmul_flops={"bfloat16": 197e12, "float32:highest": 197e12},
        num_bytes=819e9,
        collectives={Collective("psum", 100, 256): 1e6, Collective("pmax", 100, 1): 1e9},
    )
    found = roofline.bound(cost, topologies.find("v5e-256"), 256)
    assert found.matmul == pytest.approx(1 + 6)
    assert found.memory == pytest.approx(1)
    assert found.links == pytest.approx(2 * 255 / 256 * 1e8 / 200e9)
    assert found.network == 0
    assert (found.seconds, found.limit) == (found.matmul, "matmul")
    # Of four slices, every chip sends its share of the gradient over the network, 25 Gbit/s a chip.
    apart = roofline.bound(cost, topologies.find("v5e-1024"), 1024)
    assert apart.links == pytest.approx(found.links)
    assert apart.network == pytest.approx(2 * 3 / 4 * 1e8 / 256 / 3.125e9)
    # A core is half of a chip.
    assert roofline.bound(Cost({"bfloat16": 275e12}), topologies.find("v4-8"), 8).matmul == pytest.approx(2)
    with pytest.raises(ValueError, match="no peaks"):
        roofline.bound(cost, topologies.here(), 8)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("total memory required for HLO temporaries (88.41G) exceeds available HBM (15.75G).", (88.41, 15.75)),
        ("Ran out of memory in memory space hbm. Used 20.10G of 15.75G hbm.", (20.1, 15.75)),
        ("Out of memory.", (0, 0)),
    ],
)
def test_sizes_of_a_refusal(text, sizes):
    assert compiled.sizes_of_refusal(text) == pytest.approx([size * 2**30 for size in sizes])


HLO = """HloModule jit__run, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner.1 (p: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %all-reduce.2 = (f32[4,2]{1,0:T(8,128)S(3)}, /*index=1*/bf16[3]{0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
}

%branch (p: f32[5]) -> f32[5] {
  %all-gather-start.1 = f32[5]{0} all-gather-start(%p), channel_id=2
}

%outer (p: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %while.2 = (s32[], f32[4,2]) while(%t), condition=%cond, body=%inner.1, metadata={op_name="a/while"}
  %c = f32[5]{0} conditional(%i, %p, %p), branch_computations={%add, %branch}
}

%never (p: f32[5]) -> f32[5] {
  %all-reduce.9 = f32[5]{0} all-reduce(%p), to_apply=%add
}

ENTRY %main (p: f32[4,2]) -> f32[4,2] {
  %while.1 = (s32[], f32[4,2]) while(%t), condition=%cond, body=%outer
  %all-reduce.3 = pred[7]{0} all-reduce(%p), channel_id=3, to_apply=%add
}
"""


def test_messages_of_a_compiled_program():
    assert sorted(compiled.messages(HLO), key=lambda one: one.depth) == [
        compiled.Message("all-reduce", 1, 7, 0),
        compiled.Message("all-gather", 1, 20, 1),
        compiled.Message("all-reduce", 2, 4 * 8 + 2 * 3, 2),
    ]


def test_without_libtpu_devices_are_simulated(monkeypatch):
    topology = topologies.find("v5e-8")
    monkeypatch.setattr(compilers, "installed", lambda platform: False)
    assert not topology.compiles()
    assert {device.platform for device in topology.devices()} == {"cpu"}
