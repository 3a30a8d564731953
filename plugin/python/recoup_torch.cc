// recoup's checkpoint engine for Python: the extension behind recoup.checkpoint.
//
// The engine's forward is a Python callable here, so that the end of a recompute crosses the
// interpreter as a Python exception, and nobody waits for another thread's recompute while holding
// the GIL.
#include <torch/csrc/autograd/python_function.h>
#include <torch/extension.h>

#include <cstring>
#include <typeinfo>

#include "recoup/checkpoint/checkpoint.h"
#include "recoup/checkpoint/framework.h"

namespace {

namespace py = pybind11;

// recoup_torch.StopRecompute, a BaseException: `except Exception` in a forward must not catch it.
PyObject* stop_type = nullptr;

// The region whose StopRecompute is on its way through this thread: to the function that the
// region's recompute has called, since only what runs in there saves into its slots.
thread_local const void* stopping = nullptr;

// The torch.autograd.Function of a node: `obj`; in LibTorch 2.15, which has none, pyobj().
template <class PyNode>
auto function_of(PyNode& node, int) -> decltype(node.obj) {
  return node.obj;
}
template <class PyNode>
auto function_of(PyNode& node, long) -> decltype(node.pyobj()) {
  return node.pyobj();
}

class PythonRuntime final : public recoup::Runtime {
 public:
  [[noreturn]] void stop(const void* region) const override {
    const py::gil_scoped_acquire gil;
    stopping = region;
    PyErr_SetNone(stop_type);
    throw py::error_already_set();
  }

  std::unique_lock<std::mutex> lock(std::mutex& mutex) const override {
    if (PyGILState_Check() == 0) return std::unique_lock<std::mutex>(mutex);
    const py::gil_scoped_release no_gil;
    return std::unique_lock<std::mutex>(mutex);
  }

  // Of a torch.autograd.Function. By name: the class itself is not exported.
  std::vector<torch::autograd::SavedVariable>* saved_by(
      torch::autograd::Node& node) const override {
    if (std::strcmp(typeid(node).name(), "N5torch8autograd6PyNodeE") != 0) return nullptr;
    PyObject* const function = function_of(static_cast<torch::autograd::PyNode&>(node), 0);
    return &reinterpret_cast<THPFunction*>(function)->saved_variables;
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

py::tuple as_tuple(const recoup::Tensors& tensors) {
  py::tuple tuple(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) tuple[i] = py::cast(tensors[i]);
  return tuple;
}

py::object call(PyObject* function, PyObject* args, PyObject* kwargs) {
  PyObject* result = PyObject_Call(function, args, kwargs);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// The same in a recompute: null where StopRecompute has ended it, and `stopped` is its region. So
// is any RuntimeError in its place: TorchScript's interpreter turns every exception into one.
py::object call_again(PyObject* function, PyObject* args, const void** stopped) {
  PyObject* result = PyObject_Call(function, args, nullptr);
  *stopped = std::exchange(stopping, nullptr);
  if (result != nullptr) return py::reinterpret_steal<py::object>(result);
  if (*stopped == nullptr ||
      (PyErr_ExceptionMatches(stop_type) == 0 && PyErr_ExceptionMatches(PyExc_RuntimeError) == 0)) {
    throw py::error_already_set();
  }
  PyErr_Clear();
  return {};
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
    const void* stopped = nullptr;
    call_again(recompute.is_none() ? function.ptr() : recompute.ptr(), as_tuple(inputs).ptr(),
               &stopped);
    return outputs;  // nobody reads a recompute's results
  }
};

// A part of a region, which hands tensors on.
struct Part {
  py::object function;
  bool last = false;
  py::object* result = nullptr;  // of the last part, for its first run: what it returns
  bool ran = false;

  recoup::Tensors operator()(const recoup::Tensors& inputs) {
    const py::gil_scoped_acquire gil;
    const NoFrameCompilation plainly;
    const auto args = as_tuple(inputs);
    py::object value;
    if (const void* stopped = nullptr; !std::exchange(ran, true)) {
      value = call(function.ptr(), args.ptr(), nullptr);
    } else if (value = call_again(function.ptr(), args.ptr(), &stopped); !value) {
      throw recoup::StopRecompute{stopped};  // there is no result to hand on
    }
    recoup::Tensors outputs;
    if (!last) {
      append_tensors(value, &outputs);
    } else if (result != nullptr) {
      collect(value.ptr(), &outputs);
      *std::exchange(result, nullptr) = std::move(value);
    }
    return outputs;
  }

 private:
  static void append_tensors(const py::object& value, recoup::Tensors* tensors) {
    const bool several = PyTuple_Check(value.ptr()) || PyList_Check(value.ptr());
    const auto values = several ? py::reinterpret_borrow<py::sequence>(value)
                                : py::reinterpret_borrow<py::sequence>(py::make_tuple(value));
    for (const auto one : values) {
      if (!THPVariable_Check(one.ptr())) {
        throw py::type_error(
            std::string("recoup.checkpoint_parts: the part that is recomputed gave a ") +
            Py_TYPE(one.ptr())->tp_name + "; it must give a tensor, or a tuple or list of tensors");
      }
      tensors->push_back(THPVariable_Unpack(one.ptr()));
    }
  }
};

// A function that the region owns. It is freed wherever the graph is freed, which may be a thread
// without the GIL, or after Python.
template <class Function>
recoup::Forward owned_by_graph(Function function) {
  const std::shared_ptr<Function> owned(new Function(std::move(function)), [](Function* freed) {
    if (Py_IsInitialized() == 0) return;
    const py::gil_scoped_acquire gil;
    delete freed;
  });
  return [owned](const recoup::Tensors& in) { return (*owned)(in); };
}

recoup::Tensors tensors_in(const py::object& sequence) {
  recoup::Tensors tensors;
  for (const auto input : py::reinterpret_borrow<py::sequence>(sequence)) {
    tensors.push_back(input.cast<at::Tensor>());
  }
  return tensors;
}

recoup::CheckpointOptions options_of(const std::string& name, bool preserve_rng, bool early_stop,
                                     int check) {
  static const PythonRuntime runtime;
  recoup::CheckpointOptions options;
  options.name = name;
  options.preserve_rng = preserve_rng;
  options.early_stop = early_stop;
  options.check = static_cast<recoup::Check>(check);
  options.runtime = &runtime;
  return options;
}

py::object checkpoint(py::object function, py::object recompute, py::object inputs, py::tuple args,
                      py::dict kwargs, const std::string& name, bool preserve_rng, bool early_stop,
                      int check) {
  Callable::FirstRun first{std::move(args), std::move(kwargs), {}};
  recoup::checkpoint(owned_by_graph(Callable{std::move(function), std::move(recompute), &first}),
                     tensors_in(inputs), options_of(name, preserve_rng, early_stop, check));
  return std::move(first.result);
}

py::object checkpoint_parts(py::object function, py::object rest, py::object inputs,
                            const std::string& name, bool preserve_rng, int check) {
  py::object result;
  recoup::checkpoint_parts(owned_by_graph(Part{std::move(function)}),
                           owned_by_graph(Part{std::move(rest), /*last=*/true, &result}),
                           tensors_in(inputs),
                           options_of(name, preserve_rng, /*early_stop=*/true, check));
  return result;
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
        py::arg("kwargs"), py::arg("name"), py::arg("preserve_rng"), py::arg("early_stop"),
        py::arg("check"));
  m.def("checkpoint_parts", &checkpoint_parts,
        "rest(*function(*inputs)). A recompute calls the function, and the rest where it must.",
        py::arg("function"), py::arg("rest"), py::arg("inputs"), py::arg("name"),
        py::arg("preserve_rng"), py::arg("check"));
}
