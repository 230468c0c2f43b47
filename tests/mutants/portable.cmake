# Included after project(): builds what a processor without kernels of its own gets, the scalar ISA.
set(CMAKE_SYSTEM_PROCESSOR generic)
