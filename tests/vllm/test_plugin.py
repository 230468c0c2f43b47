"""What vLLM loads, and the switch."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from pagemill import vllm as plugin


@pytest.fixture(autouse=True)
def no_override() -> None:
    AttentionBackendEnum.CPU_ATTN.clear_override()


def test_the_entry_point() -> None:
    (found,) = entry_points(group="vllm.general_plugins", name="pagemill")
    assert found.load() is plugin.register


def test_registering_twice_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAGEMILL_VLLM", raising=False)
    plugin.register()
    plugin.register()
    assert AttentionBackendEnum.CPU_ATTN.get_path() == plugin.BACKEND
    assert AttentionBackendEnum.CPU_ATTN.get_class().get_name() == "CPU_ATTN"


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEMILL_VLLM", "0")
    plugin.register()
    assert not AttentionBackendEnum.CPU_ATTN.is_overridden()


def test_a_switch_that_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEMILL_VLLM", "yes")
    with pytest.raises(ValueError, match="PAGEMILL_VLLM = 'yes': expected 0 or 1"):
        plugin.register()


def test_the_plugin_alone_loads_neither_vllm_nor_pytorch() -> None:
    code = "import sys, pagemill.vllm; print([name for name in ('torch', 'vllm') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
