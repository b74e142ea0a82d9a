// What bindings share: refusals, parts of a description, and arrays that Python owns.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

namespace headway {

inline void check(bool ok, const char* message) {
  if (!ok) throw nanobind::value_error(message);
}

[[noreturn]] inline void refuse(const std::string& what) { throw nanobind::value_error(what.c_str()); }

inline nanobind::object item(const nanobind::dict& d, const char* key) {
  if (!d.contains(key)) refuse(std::string("the description lacks '") + key + "'");
  return d[key];
}

// A float32 vector of a description.
inline std::vector<float> numbers(const nanobind::dict& d, const char* key, int64_t length) {
  using Floats =
      nanobind::ndarray<const float, nanobind::numpy, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
  const auto a = nanobind::cast<Floats>(item(d, key));
  if (int64_t(a.shape(0)) != length)
    refuse(std::string(key) + " has " + std::to_string(a.shape(0)) + " numbers, not " + std::to_string(length));
  return {a.data(), a.data() + a.shape(0)};
}

// An array for the caller to fill; it is Python's from the start.
template <class T> nanobind::object array(std::initializer_list<size_t> shape, T** data) {
  size_t n = 1;
  for (size_t s : shape) n *= s;
  auto* raw = new T[n + 1];  // never empty
  *data = raw;
  nanobind::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nanobind::cast(nanobind::ndarray<nanobind::numpy, T>(raw, shape, owner));
}

template <class T> nanobind::object array(std::initializer_list<size_t> shape, const std::vector<T>& values) {
  T* data;
  nanobind::object made = array(shape, &data);
  std::copy(values.begin(), values.end(), data);
  return made;
}

}  // namespace headway
