// The Python module agent.compute._native: check, release the GIL when it pays, call, return. Nothing is computed here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "conceal.hpp"
#include "damage.hpp"
#include "dispatch.hpp"
#include "pack.hpp"

namespace py = pybind11;

namespace {

// A kernel on less than this takes some ten microseconds; getting the GIL back can take a switch interval, 5 ms.
constexpr std::size_t kReleaseBytes = std::size_t{256} << 10;
constexpr std::uint64_t kTwo32 = std::uint64_t{1} << 32;

// The one place where the GIL is released.
template <class Kernel>
auto compute(std::size_t bytes, Kernel&& kernel) {
    if (bytes < kReleaseBytes) return kernel();
    const py::gil_scoped_release released;
    return kernel();
}

[[noreturn]] void refuse(const std::string& name, const std::string& problem) {
    throw py::value_error(name + ": " + problem);
}

[[noreturn]] void refuse_size(const std::string& name, std::size_t bytes, std::size_t expected) {
    refuse(name, std::to_string(bytes) + " bytes, " + std::to_string(expected) + " expected");
}

template <class Element>
void check_array(const py::array& array, const char* name, const char* dtype) {
    if (!py::isinstance<py::array_t<Element>>(array))
        refuse(name, "dtype " + py::str(array.dtype()).cast<std::string>() + ", " + dtype + " expected");
    if ((array.flags() & py::array::c_style) == 0) refuse(name, "a C-contiguous array expected");
}

void check_writeable(const py::array& array, const char* name) {
    if (!array.writeable()) refuse(name, "a writeable array expected");
}

struct Floats {
    float* data;
    std::size_t size;
    std::size_t width;  // length of the last dimension
    std::size_t rows;   // all the others
    std::size_t bytes() const { return size * sizeof(float); }
};

Floats view(const py::array& array, const char* name) {
    check_array<float>(array, name, "float32");
    if (array.ndim() < 1) refuse(name, "at least one dimension expected");
    const auto size = static_cast<std::size_t>(array.size());
    const auto width = static_cast<std::size_t>(array.shape(array.ndim() - 1));
    return {static_cast<float*>(const_cast<void*>(array.data())), size, width, width == 0 ? 0 : size / width};
}

Floats writeable_view(const py::array& array, const char* name) {
    check_writeable(array, name);
    return view(array, name);
}

std::uint8_t* payload_view(const py::array& array, std::size_t bytes) {
    check_array<std::uint8_t>(array, "payload", "uint8");
    check_writeable(array, "payload");
    const auto size = static_cast<std::size_t>(array.size());
    if (size != bytes) refuse_size("payload", size, bytes);
    return static_cast<std::uint8_t*>(const_cast<void*>(array.data()));
}

// Any contiguous buffer, as bytes. py::buffer_info would allocate shape and strides for each.
class Bytes {
  public:
    explicit Bytes(const py::handle& object) {
        if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_SIMPLE) == 0) return;
        PyErr_Clear();
        refuse("data", "a contiguous buffer expected");
    }
    ~Bytes() { PyBuffer_Release(&buffer_); }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;

    const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(buffer_.buf); }
    std::size_t size() const { return static_cast<std::size_t>(buffer_.len); }
    void check_size(std::size_t bytes) const {
        if (size() != bytes) refuse_size("payload", size(), bytes);
    }

  private:
    Py_buffer buffer_{};
};

// Hidden states to damage, [tokens, width], and where their first token is.
Floats damage_view(const py::array& hidden, std::uint64_t position) {
    if (hidden.ndim() != 2) refuse("hidden", "shape [tokens, hidden size] expected");
    const Floats floats = writeable_view(hidden, "hidden");
    if (position + floats.rows > kTwo32) refuse("position", "beyond 2^32");
    return floats;
}

class Kernels {
  public:
    explicit Kernels(const std::string& name) : set_(edge::find_kernels(name)) {
        if (set_ == nullptr) refuse("kernel " + name, "unknown, or this CPU cannot run it");
    }

    std::string name() const { return set_->name; }

    std::size_t pack_fp16(const py::array& hidden, const py::array& payload) const {
        const Floats from = view(hidden, "hidden");
        auto* const to = reinterpret_cast<edge::Half*>(payload_view(payload, 2 * from.size));
        return compute(from.bytes(), [&] { return edge::pack_half(*set_, from.data, to, from.size); });
    }

    void pack_bf16(const py::array& hidden, const py::array& payload) const {
        const Floats from = view(hidden, "hidden");
        auto* const to = reinterpret_cast<edge::Brain*>(payload_view(payload, 2 * from.size));
        compute(from.bytes(), [&] { edge::pack_brain(*set_, from.data, to, from.size); });
    }

    void pack_int8(const py::array& hidden, const py::array& payload) const {
        const Floats from = view(hidden, "hidden");
        std::uint8_t* const to = payload_view(payload, from.size + sizeof(float) * from.rows);
        compute(from.bytes(), [&] { edge::pack_int8(*set_, from.data, to, from.rows, from.width); });
    }

    void unpack_fp16(const py::object& payload, const py::array& hidden) const {
        const Floats to = writeable_view(hidden, "hidden");
        const Bytes from(payload);
        from.check_size(2 * to.size);
        const auto* const halves = reinterpret_cast<const edge::Half*>(from.data());
        compute(to.bytes(), [&] { set_->unpack_half(halves, to.data, to.size); });
    }

    void unpack_bf16(const py::object& payload, const py::array& hidden) const {
        const Floats to = writeable_view(hidden, "hidden");
        const Bytes from(payload);
        from.check_size(2 * to.size);
        const auto* const brains = reinterpret_cast<const edge::Brain*>(from.data());
        compute(to.bytes(), [&] { set_->unpack_brain(brains, to.data, to.size); });
    }

    void unpack_int8(const py::object& payload, const py::array& hidden) const {
        const Floats to = writeable_view(hidden, "hidden");
        const Bytes from(payload);
        from.check_size(to.size + sizeof(float) * to.rows);
        compute(to.bytes(), [&] { edge::unpack_int8(*set_, from.data(), to.data, to.rows, to.width); });
    }

    void pack_int4(const py::array& hidden, const py::array& payload) const {
        const Floats from = view(hidden, "hidden");
        std::uint8_t* const to = payload_view(payload, edge::int4_bytes(from.rows, from.width));
        compute(from.bytes(), [&] { edge::pack_int4(*set_, from.data, to, from.rows, from.width); });
    }

    void unpack_int4(const py::object& payload, const py::array& hidden) const {
        const Floats to = writeable_view(hidden, "hidden");
        const Bytes from(payload);
        from.check_size(edge::int4_bytes(to.rows, to.width));
        compute(to.bytes(), [&] { edge::unpack_int4(*set_, from.data(), to.data, to.rows, to.width); });
    }

    std::size_t round_fp16(const py::array& hidden) const {
        const Floats floats = writeable_view(hidden, "hidden");
        return compute(floats.bytes(), [&] { return set_->round_half(floats.data, floats.size); });
    }

    void round_bf16(const py::array& hidden) const {
        const Floats floats = writeable_view(hidden, "hidden");
        compute(floats.bytes(), [&] { set_->round_brain(floats.data, floats.size); });
    }

    void erase(const py::array& hidden, std::uint64_t threshold, float scale, std::uint64_t seed, std::uint32_t layer,
               std::uint32_t position) const {
        const Floats floats = damage_view(hidden, position);
        if (threshold > kTwo32) refuse("threshold", "at most 2^32 expected");
        const edge::Place place{seed, layer, position};
        compute(floats.bytes(),
                [&] { edge::erase(*set_, floats.data, floats.rows, floats.width, threshold, scale, place); });
    }

    void add_noise(const py::array& hidden, float sigma, std::uint64_t seed, std::uint32_t layer,
                   std::uint32_t position) const {
        const Floats floats = damage_view(hidden, position);
        const edge::Place place{seed, layer, position};
        compute(floats.bytes(), [&] { edge::add_noise(*set_, floats.data, floats.rows, floats.width, sigma, place); });
    }

    void conceal(const py::array& hidden, const py::array& lost, const py::array& mean, const py::array& spread,
                 const py::array& precision) const {
        const Floats floats = damage_view(hidden, 0);
        check_array<bool>(lost, "lost", "bool");
        if (static_cast<std::size_t>(lost.size()) != floats.size) refuse("lost", "the shape of hidden expected");
        const Floats means = view(mean, "mean");
        const Floats spreads = view(spread, "spread");
        const Floats precisions = view(precision, "precision");
        if (means.size != floats.width || spreads.size != floats.width ||
            precisions.size != floats.width * floats.width)
            refuse("precision", "of the hidden size expected, and mean and spread too");
        const edge::Knowledge known{means.data, spreads.data, precisions.data};
        const auto* const mask = static_cast<const std::uint8_t*>(lost.data());
        compute(precisions.bytes(), [&] { edge::conceal(*set_, floats.data, mask, floats.rows, floats.width, known); });
    }

    std::uint32_t crc32c(const py::object& data, std::uint32_t seed) const {
        const Bytes bytes(data);
        return compute(bytes.size(), [&] { return set_->crc32c(bytes.data(), bytes.size(), seed); });
    }

  private:
    const edge::KernelSet* set_;
};

py::tuple available() {
    py::list names;
    for (const edge::KernelSet* set : edge::runnable_kernels()) names.append(set->name);
    return py::tuple(names);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Kernels in C++; use agent.compute.kernels instead.";
    module.def("available", &available, "Names of the kernel sets this CPU can run, best first.");
    py::class_<Kernels>(module, "Kernels")
        .def(py::init<const std::string&>(), py::arg("name"))
        .def_property_readonly("name", &Kernels::name)
        .def("pack_fp16", &Kernels::pack_fp16, py::arg("hidden"), py::arg("payload"))
        .def("pack_bf16", &Kernels::pack_bf16, py::arg("hidden"), py::arg("payload"))
        .def("pack_int8", &Kernels::pack_int8, py::arg("hidden"), py::arg("payload"))
        .def("unpack_fp16", &Kernels::unpack_fp16, py::arg("payload"), py::arg("hidden"))
        .def("unpack_bf16", &Kernels::unpack_bf16, py::arg("payload"), py::arg("hidden"))
        .def("unpack_int8", &Kernels::unpack_int8, py::arg("payload"), py::arg("hidden"))
        .def("pack_int4", &Kernels::pack_int4, py::arg("hidden"), py::arg("payload"))
        .def("unpack_int4", &Kernels::unpack_int4, py::arg("payload"), py::arg("hidden"))
        .def("round_fp16", &Kernels::round_fp16, py::arg("hidden"))
        .def("round_bf16", &Kernels::round_bf16, py::arg("hidden"))
        .def("erase", &Kernels::erase, py::arg("hidden"), py::arg("threshold"), py::arg("scale"), py::kw_only(),
             py::arg("seed"), py::arg("layer"), py::arg("position"))
        .def("add_noise", &Kernels::add_noise, py::arg("hidden"), py::arg("sigma"), py::kw_only(), py::arg("seed"),
             py::arg("layer"), py::arg("position"))
        .def("conceal", &Kernels::conceal, py::arg("hidden"), py::arg("lost"), py::arg("mean"), py::arg("spread"),
             py::arg("precision"))
        .def("crc32c", &Kernels::crc32c, py::arg("data"), py::arg("seed"));
}
