// Runs the machine code of the amx kernels where there is no AMX: linked into the library, it has the ISA
// offered, and carries out each tile instruction on emulated registers when the CPU refuses it. Vectors run
// natively, so the CPU needs AVX512_BF16; elsewhere nothing changes.
#include <ucontext.h>

#include <csignal>
#include <cstdint>
#include <cstring>

#include "dispatch/cpu.h"
#include "isa/amx_emulated/tiles.h"

namespace pagemill {
namespace {

using amx_emulated::Tiles;

// The VEX-encoded instructions of AMX-TILE and AMX-BF16, as the Intel SDM has them.
struct Instruction {
  int length;  // bytes
  int map, prefix, opcode, reg, vvvv, rm;
  bool memory;
  uint64_t address;
  int64_t stride;
};

uint64_t general_register(const ucontext_t& context, int number) {
  constexpr int kIndex[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                            REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(context.uc_mcontext.gregs[kIndex[number]]);
}

// False if the bytes are not of the form that tile instructions have: a VEX prefix of three bytes.
bool decode(const ucontext_t& context, Instruction& out) {
  const auto* const begin = reinterpret_cast<const uint8_t*>(context.uc_mcontext.gregs[REG_RIP]);
  const uint8_t* p = begin;
  if (*p++ != 0xc4) return false;
  const int high_index = ~*p >> 6 & 1, high_base = ~*p >> 5 & 1;
  out.map = *p++ & 31;
  out.vvvv = ~(*p >> 3) & 15;
  out.prefix = *p++ & 3;
  out.opcode = *p++;
  const int mod = *p >> 6;
  out.reg = *p >> 3 & 7;
  out.rm = *p++ & 7;
  out.memory = mod != 3;
  if (out.memory) {
    int base = out.rm | high_base << 3, index = 4;
    int64_t scale = 1;
    if (out.rm == 4) {
      scale = int64_t{1} << (*p >> 6);
      index = (*p >> 3 & 7) | high_index << 3;
      base = (*p++ & 7) | high_base << 3;
    }
    if (mod == 0 && (base & 7) == 5) return false;  // no base: compilers do not write that here
    out.address = general_register(context, base);
    out.stride = index == 4 ? 0 : static_cast<int64_t>(general_register(context, index)) * scale;
    if (mod == 1) out.address += static_cast<uint64_t>(int64_t{static_cast<int8_t>(*p++)});
    if (mod == 2) {
      int32_t displacement;
      std::memcpy(&displacement, p, 4);
      out.address += static_cast<uint64_t>(int64_t{displacement});
      p += 4;
    }
  }
  out.length = static_cast<int>(p - begin);
  return true;
}

template <class F>
void with_tile(int number, F f) {
  for_each_index<8>([&](auto tile) {
    if (tile == number) f(tile);
  });
}

bool carry_out(const Instruction& i) {
  enum { kNone, k66, kF3, kF2 };
  auto* const memory = reinterpret_cast<std::byte*>(i.address);
  if (i.map != 2) return false;
  if (i.opcode == 0x49 && i.prefix == kNone && i.memory) {
    TileConfig config;
    std::memcpy(&config, memory, sizeof config);
    Tiles::configure(config);
  } else if (i.opcode == 0x49 && i.prefix == k66 && i.memory) {
    TileConfig config;
    Tiles::save(config);
    std::memcpy(memory, &config, sizeof config);
  } else if (i.opcode == 0x49 && i.prefix == kNone) {
    Tiles::release();
  } else if (i.opcode == 0x49 && i.prefix == kF2 && !i.memory) {
    with_tile(i.reg, [](auto t) { Tiles::zero<decltype(t)::value>(); });
  } else if (i.opcode == 0x4b && (i.prefix == kF2 || i.prefix == k66) && i.memory) {
    with_tile(i.reg, [&](auto t) { Tiles::load<decltype(t)::value>(memory, i.stride); });
  } else if (i.opcode == 0x4b && i.prefix == kF3 && i.memory) {
    with_tile(i.reg, [&](auto t) { Tiles::store<decltype(t)::value>(memory, i.stride); });
  } else if (i.opcode == 0x5c && i.prefix == kF3 && !i.memory) {
    Tiles::dpbf16(i.reg, i.rm, i.vvvv);
  } else {
    return false;
  }
  return true;
}

void on_illegal_instruction(int, siginfo_t*, void* context_pointer) {
  auto& context = *static_cast<ucontext_t*>(context_pointer);
  Instruction instruction{};
  if (decode(context, instruction) && carry_out(instruction)) {
    context.uc_mcontext.gregs[REG_RIP] += instruction.length;
  } else {
    signal(SIGILL, SIG_DFL);
  }
}

__attribute__((constructor)) void offer_amx() {
  auto& features = const_cast<CpuFeatures&>(cpu_features());
  if (!features.avx512_bf16 || features.amx_permitted) return;
  struct sigaction action{};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  features.amx_bf16 = features.amx_permitted = true;
}

}  // namespace
}  // namespace pagemill
