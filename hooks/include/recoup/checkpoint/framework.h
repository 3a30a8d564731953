// What recompute.h asks of a tensor framework, and the answers that most give alike.
#pragma once

#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

namespace recoup {

// Thrown through the forward to end a recompute. Not a std::exception, so that a forward which
// handles errors does not take it for one.
struct StopRecompute {
  const void* region;  // whose recompute ends
};

// What is wrong with a region's recompute: names the region and the tensor.
class RecomputeError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What a Framework answers where it has nothing of its own to say: tensors have no version
// counters, an operation saves when its kernel has run and survives an exception, nobody reads a
// saved tensor twice, and the forward is C++. A Framework derives from it and hides what differs.
struct FrameworkDefaults {
  using Operation = int;

  template <class Record>
  std::string changed(const Record&) const {
    return {};
  }
  template <class Record, class Tensor>
  bool may_stop_after(const Record&, const Tensor&) const {
    return true;
  }
  void check_inputs() const {}
  template <class Record, class Held>
  void refresh(Record&, Held*) const {}
  template <class Record, class Tensor>
  std::nullopt_t keep(const Record&, const Tensor&) {
    return std::nullopt;
  }
  template <class Held, class Tensor>
  std::string kept_mismatch(const Held&, const Tensor&) const {
    return {};
  }
  bool checks_values() const { return false; }
  template <class Record, class Held>
  std::string values_mismatch(const Record&, const Held&) const {
    return {};
  }
  Operation operation() const { return 0; }
  const void* reader() const { return nullptr; }
  [[noreturn]] void stop(const void* region) const { throw StopRecompute{region}; }
  bool stopped_by(const void* region) const {
    try {
      throw;
    } catch (const StopRecompute& stop) {
      return stop.region == region;
    } catch (...) {
      return false;
    }
  }
  std::unique_lock<std::mutex> lock(std::mutex& mutex) const {
    return std::unique_lock<std::mutex>(mutex);
  }
};

// Framework requirements; those marked * are in FrameworkDefaults:
//   Tensor                                 the framework's tensor handle
//   Record                                 what the forward remembers of a saved tensor
//   Held                                   a refilled tensor; default-constructed: none
//   Record describe(const Tensor&)         during the forward
// * std::string changed(const Record&)     why the forward's tensor is no longer what it was (it
//                                          was modified in place), or empty; asked before a
//                                          recompute
// * void check_inputs()                    before a recompute: throws where an input is no longer
//                                          what it was
//   std::string mismatch(const Record&, const Tensor&)   how a recomputed tensor differs, or empty
// * bool may_stop_after(const Record&, const Tensor&)    whether the operation that saves this
//                                          tensor may be left at once: the tensor's content is
//                                          final, and the operation survives an exception
// * Operation operation()                  a value that differs between the operations that save
// * std::optional<Held> keep(const Record&, const Tensor&)   during the forward: what is kept of a
//                                          saved tensor that is not worth a recompute, or nothing
// * std::string kept_mismatch(const Held&, const Tensor&)    during a recompute: how its tensor
// differs
//                                          from the one kept, or empty
// * bool checks_values()                   whether values are compared after a recompute:
// * std::string values_mismatch(const Record&, const Held&)  how they differ, or empty
// * void refresh(Record&, Held* kept)      after a recompute, in which the forward may itself have
//                                          modified what was recorded, or kept (null: was not)
//   Held hold(const Tensor&)               during the recompute
//   bool read(const Held&, Tensor*, std::string* error)   gives the tensor to autograd; false
//                                          where none is held; `error` where it was modified
// * const void* reader()                   which node of the graph reads now; it may read again
//   void recompute()                       runs the forward with pack hooks that call refill()
// * [[noreturn]] void stop(const void* region)      throws StopRecompute in the framework's way
// * bool stopped_by(const void* region)    in a catch (...): whether it was that
// * std::unique_lock<std::mutex> lock(std::mutex&)  for the recompute's long mutex
//   std::string name()                     the region's name, for errors

}  // namespace recoup
