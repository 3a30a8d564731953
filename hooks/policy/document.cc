#include "document.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "text.h"

namespace recoup {
namespace {

constexpr std::size_t kDeepest = 32;  // options nest two deep
constexpr char kTagged[] = "a value beginning with ! must be quoted, such as \"!7\"";

// Where things are in the text.
class Source {
 public:
  Source(std::string_view text, const std::string& file) : text_(text), file_(file) {}

  std::string place(const YAML::Mark& mark) const {
    if (mark.is_null()) return file_;
    return file_ + ":" + std::to_string(mark.line + 1) + ":" + std::to_string(mark.column + 1);
  }

  // The last character before `mark` that is neither blank nor in a line of comment: where nothing
  // is written, the parser's mark is at whatever comes next, which may be lines away.
  std::string place_before(const YAML::Mark& mark) const {
    if (mark.is_null() || static_cast<std::size_t>(mark.pos) > text_.size()) return place(mark);
    auto before = text_.substr(0, static_cast<std::size_t>(mark.pos));
    auto found = mark;
    for (;;) {
      const auto last = before.find_last_not_of(" \t\r\n");
      if (last == std::string_view::npos) return place(mark);
      found.line -= static_cast<int>(std::count(before.begin() + last, before.end(), '\n'));
      const auto start = before.find_last_of('\n', last) + 1;  // npos + 1 is 0
      found.column = static_cast<int>(last - start);
      if (before[before.find_first_not_of(" \t", start)] != '#') return place(found);
      before = before.substr(0, start);
      if (start == 0) return place(mark);
      before.remove_suffix(1);
      --found.line;
    }
  }

  // The text from `mark` on.
  std::string_view from(const YAML::Mark& mark) const {
    const auto at = mark.is_null() ? text_.size() : static_cast<std::size_t>(mark.pos);
    return text_.substr(std::min(at, text_.size()));
  }

  // The same without the anchors (&name), blanks and comments before a value.
  std::string_view value(const YAML::Mark& mark) const {
    auto rest = from(mark);
    for (;;) {
      rest.remove_prefix(std::min(rest.find_first_not_of(" \t\r\n"), rest.size()));
      if (rest.empty() || (rest[0] != '&' && rest[0] != '#')) return rest;
      rest.remove_prefix(
          std::min(rest.find_first_of(rest[0] == '&' ? " \t\r\n" : "\n"), rest.size()));
    }
  }

  // Throws for the first character that no YAML file may have. yaml-cpp takes 0x04 for the end.
  void check_characters() const {
    YAML::Mark mark;
    for (const char c : text_) {
      const auto byte = static_cast<unsigned char>(c);
      if ((byte < 0x20 && c != '\t' && c != '\r' && c != '\n') || byte == 0x7F) {
        throw Error{place(mark) + ": not valid YAML: the control character " +
                    text::printable({&c, 1})};
      }
      ++mark.column;
      if (c == '\n') {
        ++mark.line;
        mark.column = 0;
      }
    }
  }

 private:
  std::string_view text_;
  const std::string& file_;
};

bool begins_with(std::string_view s, std::string_view start) {
  return s.substr(0, start.size()) == start;
}

// Refuses whatever follows the first document.
class NothingMore final : public YAML::EventHandler {
 public:
  explicit NothingMore(const Source& source) : source_(source) {}
  void OnDocumentStart(const YAML::Mark& mark) override {
    const auto rest = source_.from(mark);
    if (begins_with(rest, "---")) {
      throw Error{source_.place(mark) + ": a second YAML document; allowed is one"};
    }
    throw Error{source_.place(mark) +
                ": not valid YAML: " + text::quoted(rest.substr(0, rest.find_first_of("\r\n"))) +
                " after the end of the document"};
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}

 private:
  const Source& source_;
};

}  // namespace

// Makes the tree of the parser's events.
class Builder final : public YAML::EventHandler {
 public:
  Builder(const Source& source, Document& document) : source_(source), document_(document) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto written = source_.from(mark);
    refuse_tag(mark,
               begins_with(source_.value(mark), "!") && !written.empty() && written[0] == '&');
    bool is_written = begins_with(written, "&");
    for (const char* null : {"~", "null", "Null", "NULL"}) {
      is_written = is_written || begins_with(written, null);
    }
    if (is_written) {
      add({Node::Kind::kNull, source_.place(mark)}, anchor);
    } else {
      add({Node::Kind::kEmpty, source_.place_before(mark)}, anchor);
    }
  }

  void OnAlias(const YAML::Mark&, YAML::anchor_t anchor) override { add(anchors_.at(anchor)); }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    // The tag "!" may be one, and stands for quotation marks too: the text tells them apart.
    const bool quoted = tag == "!";
    refuse_tag(mark, is_tag(tag) || (quoted && begins_with(source_.value(mark), "!")));
    add({quoted ? Node::Kind::kQuoted : Node::Kind::kPlain, source_.place(mark), value}, anchor);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(Node::Kind::kList, mark, tag, anchor);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(Node::Kind::kMapping, mark, tag, anchor);
  }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  static bool is_tag(const std::string& tag) { return !tag.empty() && tag != "?" && tag != "!"; }

  // "key: " of the value that comes next, or nothing.
  std::string key() const {
    for (auto node = open_.rbegin(); node != open_.rend(); ++node) {
      const auto& items = (*node)->items;
      if ((*node)->kind == Node::Kind::kMapping && items.size() % 2 == 1 &&
          items.back()->is_scalar()) {
        return text::printable(items.back()->text) + ": ";
      }
    }
    return {};
  }

  void refuse_tag(const YAML::Mark& mark, bool tagged) const {
    if (tagged) throw Error{source_.place(mark) + ": " + key() + kTagged};
  }

  void open(Node::Kind kind, const YAML::Mark& mark, const std::string& tag,
            YAML::anchor_t anchor) {
    refuse_tag(mark, is_tag(tag) || tag == "!");
    if (open_.size() == kDeepest) {
      throw Error{source_.place(mark) + ": lists and mappings more than " +
                  std::to_string(kDeepest) + " deep"};
    }
    open_.push_back(add({kind, source_.place(mark)}, anchor));
  }

  Node* add(Node node, YAML::anchor_t anchor) {
    document_.nodes_.push_back(std::move(node));
    auto* added = &document_.nodes_.back();
    if (anchor != 0) anchors_[anchor] = added;
    add(added);
    return added;
  }
  void add(const Node* node) {
    if (open_.empty()) {
      document_.root_ = node;
    } else {
      open_.back()->items.push_back(node);
    }
  }

  const Source& source_;
  Document& document_;
  std::vector<Node*> open_;
  std::map<YAML::anchor_t, const Node*> anchors_;
};

Result<Document> Document::read(std::string_view yaml, const std::string& file) {
  const Source source(yaml, file);
  try {
    source.check_characters();
    Document document;
    std::istringstream stream{std::string(yaml)};
    YAML::Parser parser(stream);
    Builder builder(source, document);
    // Never until it says that the stream has ended: yaml-cpp 0.7 finds an empty document at a
    // comma, for ever.
    if (parser.HandleNextDocument(builder)) {
      NothingMore nothing(source);
      parser.HandleNextDocument(nothing);
    }
    return document;
  } catch (const Error& error) {  // ours
    return error;
  } catch (const YAML::Exception& e) {
    if (begins_with(source.from(e.mark), "!")) return Error{source.place(e.mark) + ": " + kTagged};
    return Error{source.place(e.mark) + ": not valid YAML: " + text::printable(e.msg)};
  }
}

}  // namespace recoup
