"""The package as it is installed beside SGLang."""

import subprocess
import sys
from importlib.metadata import entry_points, files

from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

import pagemill.sglang


def test_wheel_is_pagemill_alone() -> None:
    """Nothing that stands in for SGLang's kernels, nor a plugin of these tests."""
    installed = {file.parts[0] for file in files("pagemill") or ()}
    assert installed == {"pagemill", f"pagemill-{pagemill.__version__}.dist-info"}


def test_entry_point() -> None:
    (plugin,) = entry_points(group="sglang.srt.plugins", name="pagemill")
    register = plugin.load()
    register(), register()
    assert ATTENTION_BACKEND_CHOICES.count("pagemill") == 1 and "pagemill" in ATTENTION_BACKENDS


def test_plugin_alone_loads_little() -> None:
    """Every process of SGLang imports it, whatever its attention is."""
    code = "import sys, pagemill.sglang; print('torch' in sys.modules or 'sglang' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
