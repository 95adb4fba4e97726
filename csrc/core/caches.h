// The sizes of one core's data caches, read once from the system.
#pragma once

#include <cstdint>
#include <cstdio>

namespace evoprune {

struct Caches {
  int64_t l1 = 32 << 10, l2 = 512 << 10;  // bytes; where the system does not tell
};

// The size that Linux tells of one cache, or `otherwise`.
inline int64_t read_cache_bytes(int index, int64_t otherwise) {
  char path[80];
  std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
  std::FILE* file = std::fopen(path, "r");
  if (file == nullptr) return otherwise;
  long long kilobytes = 0;
  const bool read = std::fscanf(file, "%lldK", &kilobytes) == 1 && kilobytes > 0;
  std::fclose(file);
  return read ? kilobytes << 10 : otherwise;
}

inline const Caches& caches() {  // index1 is the cache of instructions
  static const Caches found{read_cache_bytes(0, Caches{}.l1), read_cache_bytes(2, Caches{}.l2)};
  return found;
}

}  // namespace evoprune
