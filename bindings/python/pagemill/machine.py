"""What this build has and this machine takes."""

from typing import Any

from . import _core


def info() -> dict[str, Any]:
    """What the library is and does here.

    Returns:
      version: of the library.
      threads: that the affinity mask and the cgroup quota allow, the default of plans.
      isa: name of the ISA whose kernels are taken.
      isas: all of the build, best first: name, available (the machine can run it), selected, reason (why not).
      kernels: names of the attention kernels.
      costs: where the cost model of plans comes from: isa, path, tuned, problem.

    Raises:
      NotImplementedError, ValueError: PAGEMILL_ISA names an ISA that the machine or the build does not have.
    """
    isas = _core.isas()
    return {
        "version": _core.version(),
        "threads": _core.default_threads(),
        "isa": next(isa["name"] for isa in isas if isa["selected"]),
        "isas": isas,
        "kernels": _core.kernels(),
        "costs": _core.costs(),
    }
