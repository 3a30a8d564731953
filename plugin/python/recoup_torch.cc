// recoup's checkpoint engine for Python: the extension behind recoup.checkpoint.
//
// The engine's forward is a Python callable here, so that the end of a recompute crosses the
// interpreter as a Python exception, and nobody waits for another thread's recompute while holding
// the GIL.
#include <torch/extension.h>

#include "recoup/checkpoint/checkpoint.h"

namespace {

namespace py = pybind11;

// recoup_torch.StopRecompute, a BaseException: `except Exception` in a forward must not catch it.
PyObject* stop_type = nullptr;

// The region whose StopRecompute is on its way through this thread. What arrives at the region's
// recompute after that is the stop, also where something on the way has put another exception in
// its place: TorchScript's interpreter turns every exception into one of its own.
thread_local const void* stopping = nullptr;

class PythonRuntime final : public recoup::Runtime {
 public:
  [[noreturn]] void stop(const void* region) const override {
    const py::gil_scoped_acquire gil;
    stopping = region;
    PyErr_SetObject(stop_type, py::int_(reinterpret_cast<std::uintptr_t>(region)).ptr());
    throw py::error_already_set();
  }

  bool stopped_by(const void* region) const override {
    const bool stops = stopping == region;
    if (stops) stopping = nullptr;
    try {
      throw;
    } catch (py::error_already_set& error) {
      const py::gil_scoped_acquire gil;
      if (error.matches(stop_type)) {
        return error.value().attr("args")[py::int_(0)].cast<std::uintptr_t>() ==
               reinterpret_cast<std::uintptr_t>(region);
      }
      return stops && error.matches(PyExc_RuntimeError);
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

// While a region runs, torch.compile leaves the frames called in it alone: where its caller is
// being compiled the forward would run compiled and the recompute as it is, or the other way
// around, and the two save different tensors. A compiled function called in a region stays one.
class NoFrameCompilation {
 public:
  NoFrameCompilation() {
    if (const auto set = setter()) before_ = set(py::none());
  }
  ~NoFrameCompilation() {
    if (!before_ || before_.is_none()) return;
    const py::error_scope pending;  // this may run while an exception passes
    setter()(before_);
  }
  NoFrameCompilation(const NoFrameCompilation&) = delete;
  NoFrameCompilation& operator=(const NoFrameCompilation&) = delete;

 private:
  static py::handle setter() {
    static PyObject* const set = [] {
      try {
        const auto frames = py::module_::import("torch._C._dynamo.eval_frame");
        return py::object(frames.attr("set_eval_frame")).release().ptr();
      } catch (py::error_already_set&) {  // a LibTorch that compiles no frames
        return static_cast<PyObject*>(nullptr);
      }
    }();
    return set;
  }

  py::object before_;
};

// The tensors in a result: itself, or those in its tuples, lists and dicts.
void collect(PyObject* value, recoup::Tensors* tensors) {
  if (THPVariable_Check(value)) {
    tensors->push_back(THPVariable_Unpack(value));
  } else if (PyTuple_Check(value)) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); ++i) {
      collect(PyTuple_GET_ITEM(value, i), tensors);
    }
  } else if (PyList_Check(value)) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(value); ++i) {
      collect(PyList_GET_ITEM(value, i), tensors);
    }
  } else if (PyDict_Check(value)) {
    Py_ssize_t position = 0;
    for (PyObject *key = nullptr, *item = nullptr; PyDict_Next(value, &position, &key, &item);) {
      collect(item, tensors);
    }
  }
}

py::object call(PyObject* function, PyObject* args, PyObject* kwargs) {
  PyObject* result = PyObject_Call(function, args, kwargs);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// The function that a region owns, and for its first run what that is called with and returns.
// Neither arguments nor result outlive the first run here: a result holds the graph that holds the
// region, so holding it would keep all of them for ever.
struct Callable {
  struct FirstRun {
    py::tuple args;
    py::object kwargs, result;
  };

  py::object function, recompute;
  FirstRun* first = nullptr;

  recoup::Tensors operator()(const recoup::Tensors& inputs) {
    const py::gil_scoped_acquire gil;
    const NoFrameCompilation plainly;
    recoup::Tensors outputs;
    if (first != nullptr) {
      auto& run = *std::exchange(first, nullptr);
      run.result = call(function.ptr(), run.args.ptr(), run.kwargs.ptr());
      collect(run.result.ptr(), &outputs);
      return outputs;
    }
    py::tuple leaves(inputs.size());
    for (std::size_t i = 0; i < inputs.size(); ++i) leaves[i] = py::cast(inputs[i]);
    call(recompute.is_none() ? function.ptr() : recompute.ptr(), leaves.ptr(), nullptr);
    return outputs;  // nobody reads a recompute's results
  }
};

void free_with_gil(Callable* callable) {
  // Freed wherever the graph is freed, which may be a thread without the GIL, or after Python.
  if (Py_IsInitialized() == 0) return;
  const py::gil_scoped_acquire gil;
  delete callable;
}

py::object checkpoint(py::object function, py::object recompute, py::object inputs, py::tuple args,
                      py::dict kwargs, const std::string& name, bool preserve_rng,
                      bool early_stop) {
  static const PythonRuntime runtime;
  recoup::CheckpointOptions options;
  options.name = name;
  options.preserve_rng = preserve_rng;
  options.early_stop = early_stop;
  options.runtime = &runtime;
  recoup::Tensors tensors;
  for (const auto input : py::reinterpret_borrow<py::sequence>(inputs)) {
    tensors.push_back(input.cast<at::Tensor>());
  }
  Callable::FirstRun first{std::move(args), std::move(kwargs), {}};
  const std::shared_ptr<Callable> owned(
      new Callable{std::move(function), std::move(recompute), &first}, free_with_gil);
  recoup::checkpoint([owned](const recoup::Tensors& in) { return (*owned)(in); }, tensors, options);
  return std::move(first.result);
}

// Whether these are plain tensors, each another one: of no Python class of their own, without
// Python attributes.
bool plain_tensors(const py::tuple& args) {
  for (std::size_t i = 0; i < args.size(); ++i) {
    PyObject* const arg = PyTuple_GET_ITEM(args.ptr(), i);
    if (reinterpret_cast<PyObject*>(Py_TYPE(arg)) != THPVariableClass) return false;
    PyObject** const attributes = _PyObject_GetDictPtr(arg);
    if (attributes != nullptr && *attributes != nullptr && PyDict_Size(*attributes) > 0) {
      return false;
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (PyTuple_GET_ITEM(args.ptr(), j) == arg) return false;
    }
  }
  return true;
}

}  // namespace

PYBIND11_MODULE(recoup_torch, m) {
  m.doc() =
      "recoup's activation checkpointing engine (see hooks/include/recoup/checkpoint/checkpoint.h)";
  stop_type = PyErr_NewException("recoup_torch.StopRecompute", PyExc_BaseException, nullptr);
  m.attr("StopRecompute") = py::handle(stop_type);
  m.def("plain_tensors", &plain_tensors,
        "Whether all are plain tensors: no subclass, no Python attributes, none twice.",
        py::arg("args"));
  m.def("recomputing", &recoup::recomputing,
        "Whether this thread runs a recompute: for forwards that count, as BatchNorm and routers "
        "do.");
  m.def("checkpoint", &checkpoint,
        "function(*args, **kwargs), of whose arguments `inputs`, the tensors among them, are kept. "
        "A recompute calls recompute(*inputs), or where that is None function(*inputs).",
        py::arg("function"), py::arg("recompute"), py::arg("inputs"), py::arg("args"),
        py::arg("kwargs"), py::arg("name"), py::arg("preserve_rng"), py::arg("early_stop"));
}
