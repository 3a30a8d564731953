// recoup's checkpoint engine for Python: `import recoup_torch`.
//
// The engine's forward is a Python callable here, so that the end of a recompute crosses the interpreter as
// a Python exception, and nobody waits for another thread's recompute while holding the GIL.
#include <torch/extension.h>

#include "recoup/checkpoint/checkpoint.h"

namespace {

namespace py = pybind11;

// recoup_torch.StopRecompute, a BaseException: `except Exception` in a forward must not catch it.
PyObject* early_stop_type = nullptr;

class PythonRuntime final : public recoup::Runtime {
 public:
  [[noreturn]] void stop(const void* region) const override {
    const py::gil_scoped_acquire gil;
    PyErr_SetObject(early_stop_type, py::int_(reinterpret_cast<std::uintptr_t>(region)).ptr());
    throw py::error_already_set();
  }

  bool stopped_by(const void* region) const override {
    try {
      throw;
    } catch (py::error_already_set& error) {
      const py::gil_scoped_acquire gil;
      return error.matches(early_stop_type) &&
             error.value().attr("args")[py::int_(0)].cast<std::uintptr_t>() ==
                 reinterpret_cast<std::uintptr_t>(region);
    } catch (...) {
      return false;
    }
  }

  std::unique_lock<std::mutex> lock(std::mutex& mutex) const override {
    if (PyGILState_Check() == 0) return std::unique_lock<std::mutex>(mutex);
    const py::gil_scoped_release no_gil;
    return std::unique_lock<std::mutex>(mutex);
  }
};

recoup::Tensors checkpoint(py::function function, const recoup::Tensors& inputs,
                           const std::string& name, bool preserve_rng, bool early_stop) {
  static const PythonRuntime runtime;
  recoup::CheckpointOptions options;
  options.name = name;
  options.preserve_rng = preserve_rng;
  options.early_stop = early_stop;
  options.runtime = &runtime;
  // Freed wherever the graph is freed, which may be a thread without the GIL.
  const std::shared_ptr<py::function> owned(new py::function(std::move(function)),
                                            [](py::function* f) {
                                              const py::gil_scoped_acquire gil;
                                              delete f;
                                            });
  return recoup::checkpoint(
      [owned](const recoup::Tensors& in) {
        const py::gil_scoped_acquire gil;
        return (*owned)(in).cast<recoup::Tensors>();
      },
      inputs, options);
}

}  // namespace

PYBIND11_MODULE(recoup_torch, m) {
  m.doc() =
      "recoup's activation checkpointing engine (see hooks/include/recoup/checkpoint/checkpoint.h)";
  early_stop_type = PyErr_NewException("recoup_torch.StopRecompute", PyExc_BaseException, nullptr);
  m.attr("StopRecompute") = py::handle(early_stop_type);
  m.def("checkpoint", &checkpoint,
        "Runs function(inputs), a list of tensors to a list of tensors, keeping only the inputs.",
        py::arg("function"), py::arg("inputs"), py::arg("name") = "checkpoint",
        py::arg("preserve_rng") = true, py::arg("early_stop") = true);
}
