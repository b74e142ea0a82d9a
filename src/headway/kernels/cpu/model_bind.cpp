// Python's view of the whole-model step: Model, Sequence.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <string>

#include "batch.h"
#include "binding_tools.h"
#include "bindings.h"
#include "lanes.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

using Tokens = nb::ndarray<const int32_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// What Python holds. By value, like NativeWeight: nanobind aborts when memory runs out while it takes a shared_ptr.
struct NativeModel {
  std::shared_ptr<Model> model;
};
struct NativeSequence {
  std::shared_ptr<Sequence> sequence;
};

struct NativeBlock {
  Block block;
  const KVLayout* layout;
};

NativeBlock share(const NativeSequence& self, int64_t index) {
  NativeBlock shared{{}, &self.sequence->layout()};
  if (!self.sequence->share(index, &shared.block)) refuse("page " + std::to_string(index) + " is not full, or trimmed");
  return shared;
}

void adopt(NativeSequence& self, const nb::list& blocks) {
  std::vector<Block> taken;
  for (const nb::handle handle : blocks) {
    const auto& block = nb::cast<const NativeBlock&>(handle);
    if (block.layout != &self.sequence->layout()) refuse("a page belongs to another model");
    taken.push_back(block.block);
  }
  if (!self.sequence->adopt(taken)) refuse("only an empty sequence can begin with shared pages");
}

template <class T> T number(const nb::dict& d, const char* key) { return nb::cast<T>(item(d, key)); }

Vector vector(const nb::dict& d, const char* key, int64_t length, bool optional) {
  if (optional && !d.contains(key)) return {};
  return numbers(d, key, length);
}

WeightPtr weight(const nb::dict& d, const char* key, int64_t out, int64_t in) {
  const WeightPtr w = nb::cast<NativeWeight>(item(d, key)).weight;
  if (w->out() != out || w->in() != in)
    refuse(std::string(key) + " is " + std::to_string(w->out()) + "x" + std::to_string(w->in()) + ", not " +
           std::to_string(out) + "x" + std::to_string(in));
  return w;
}

NativeModel make(const nb::dict& d) {
  ModelConfig c;
  c.vocab = number<int64_t>(d, "vocab");
  c.d_model = number<int64_t>(d, "d_model");
  c.ffn = number<int64_t>(d, "ffn");
  c.heads = number<int64_t>(d, "heads");
  c.kv_heads = number<int64_t>(d, "kv_heads");
  c.head_dim = number<int64_t>(d, "head_dim");
  for (int64_t n : {c.vocab, c.d_model, c.ffn, c.heads, c.kv_heads, c.head_dim})
    if (n < 1 || n > 1 << 24) refuse("a size of the model lies outside 1..2^24");
  if (c.heads % c.kv_heads || c.head_dim % 2) refuse("heads must divide by kv_heads, head_dim by 2");
  c.norm_eps = number<float>(d, "norm_eps");
  c.query_scale = number<float>(d, "query_scale");
  c.embedding_scale = number<float>(d, "embedding_scale");
  c.attention_softcap = number<float>(d, "attention_softcap");
  c.final_softcap = number<float>(d, "final_softcap");
  c.activation = number<int>(d, "activation");
  const auto kv = nb::cast<std::string>(d["kv"]);
  const char* const stores[] = {"f32", "f16", "int8", "int4", "k8v4"};  // as PageStore counts them
  const auto store = std::find(std::begin(stores), std::end(stores), kv);
  if (store == std::end(stores)) throw nb::value_error("kv must be f32, f16, int8, int4 or k8v4");
  c.kv = PageStore(store - std::begin(stores));
  if (c.kv >= kPageInt8 && c.head_dim > kMostCodedDim)
    throw nb::value_error("integer keys take heads of at most 1,024");
  c.exact = number<bool>(d, "exact");
  const int64_t qs = c.heads * c.head_dim, ks = c.kv_heads * c.head_dim;
  std::vector<LayerWeights> layers;
  std::vector<RopeTable> ropes;
  for (const nb::handle handle : nb::cast<nb::list>(item(d, "layers"))) {
    const auto l = nb::cast<nb::dict>(handle);
    LayerWeights w;
    w.q = weight(l, "q", qs, c.d_model);
    w.k = weight(l, "k", ks, c.d_model);
    w.v = weight(l, "v", ks, c.d_model);
    w.o = weight(l, "o", c.d_model, qs);
    w.gate = weight(l, "gate", c.ffn, c.d_model);
    w.up = weight(l, "up", c.ffn, c.d_model);
    w.down = weight(l, "down", c.d_model, c.ffn);
    w.attention_norm = vector(l, "attention_norm", c.d_model, false);
    w.mlp_norm = vector(l, "mlp_norm", c.d_model, false);
    w.q_bias = vector(l, "q_bias", qs, true);
    w.k_bias = vector(l, "k_bias", ks, true);
    w.v_bias = vector(l, "v_bias", ks, true);
    w.q_norm = vector(l, "q_norm", c.head_dim, true);
    w.k_norm = vector(l, "k_norm", c.head_dim, true);
    w.post_attention_norm = vector(l, "post_attention_norm", c.d_model, true);
    w.post_mlp_norm = vector(l, "post_mlp_norm", c.d_model, true);
    w.window = number<int64_t>(l, "window");
    if (w.window < 0 || w.window > INT32_MAX) refuse("window lies outside 0..2^31");
    Vector frequencies = vector(l, "frequencies", c.head_dim / 2, false);
    const auto factor = number<float>(l, "rope_factor");
    size_t at = 0;
    while (at < ropes.size() && !ropes[at].same(frequencies, factor)) ++at;
    if (at == ropes.size()) ropes.emplace_back(std::move(frequencies), factor);
    w.rope = int(at);
    layers.push_back(std::move(w));
  }
  if (layers.empty()) refuse("the model has no layers");
  return {std::make_shared<Model>(c, std::move(layers), std::move(ropes), vector(d, "final_norm", c.d_model, false),
                                  weight(d, "embedding", c.vocab, c.d_model), weight(d, "head", c.vocab, c.d_model))};
}

// sequences[i] is fed tokens[offsets[i] : offsets[i + 1]].
std::vector<Part> parts_of(const Model& model, const nb::list& sequences, const Tokens& tokens, const Tokens& offsets) {
  const size_t n = sequences.size();
  if (n == 0 || offsets.shape(0) != n + 1) refuse("give one offset more than sequences, and at least one sequence");
  const int32_t* bounds = offsets.data();
  std::vector<Part> parts;
  for (size_t i = 0; i < n; ++i) {
    Sequence* sequence = nb::cast<NativeSequence&>(sequences[i]).sequence.get();
    const int64_t count = int64_t(bounds[i + 1]) - bounds[i];
    if (bounds[i] < 0 || count < 1 || bounds[i + 1] > int64_t(tokens.shape(0)))
      refuse("offsets must rise from 0 to the number of tokens");
    if (&sequence->layout() != model.kv_layout().get()) refuse("a sequence belongs to another model");
    if (sequence->length() + count > INT32_MAX) refuse("a sequence would exceed 2^31 tokens");
    for (const Part& part : parts)
      if (part.sequence == sequence) refuse("a sequence occurs twice in one step");
    for (int64_t t = bounds[i]; t < bounds[i + 1]; ++t)
      if (tokens.data()[t] < 0 || tokens.data()[t] >= model.config().vocab) refuse("a token lies outside the vocabulary");
    parts.push_back({sequence, tokens.data() + bounds[i], count, Wanted::none});
  }
  return parts;
}

using Flags = nb::ndarray<const uint8_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// run(parts, logits) without the GIL -> logits of the rows wanted.
template <class F>
nb::object stepped(const Model& model, const nb::list& sequences, const Tokens& tokens, const Tokens& offsets,
                   const Flags& wanted, F&& run) {
  std::vector<Part> parts = parts_of(model, sequences, tokens, offsets);
  if (wanted.shape(0) != parts.size()) refuse("say for each sequence which logits are wanted");
  int64_t rows = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (wanted.data()[i] > 2) refuse("wanted logits are 0 none, 1 of the last token, 2 of every token");
    parts[i].wanted = Wanted(wanted.data()[i]);
    rows += parts[i].wanted == Wanted::every ? parts[i].count : parts[i].wanted == Wanted::last;
  }
  float* logits;
  nb::object result = array({size_t(rows), size_t(model.config().vocab)}, &logits);
  const nb::gil_scoped_release release;
  run(parts, logits);
  return result;
}

nb::object step(const NativeModel& self, const nb::list& sequences, const Tokens& tokens, const Tokens& offsets,
                const Flags& wanted, int threads) {
  return stepped(*self.model, sequences, tokens, offsets, wanted, [&](const std::vector<Part>& parts, float* logits) {
    self.model->step(parts, logits, threads);
  });
}

nb::object step_lane(Lanes& self, int lane, const nb::list& sequences, const Tokens& tokens, const Tokens& offsets,
                     const Flags& wanted) {
  if (lane < 0 || lane > 1) refuse("lanes are 0 and 1");
  return stepped(self.model(), sequences, tokens, offsets, wanted, [&](const std::vector<Part>& parts, float* logits) {
    self.step(lane, parts, logits);
  });
}

// A batch taken through the layers by its caller, crossing by crossing: for KV systems that do `attend` themselves.
class OpenBatch {
 public:
  OpenBatch(const NativeModel& model, int threads) : model_(model.model), batch_(*model_), threads_(threads) {}

  void begin(const nb::list& sequences, const Tokens& tokens, const Tokens& offsets) {
    const std::vector<Part> parts = parts_of(*model_, sequences, tokens, offsets);
    int64_t rows = 0, longest = 0;
    for (const Part& part : parts) {
      rows += part.count;
      longest = std::max(longest, part.sequence->length() + part.count);
    }
    room(rows);
    keep_ = nb::list(sequences);
    fed_.clear();
    for (const Part& part : parts) fed_.push_back({part.sequence, part.sequence->length(), part.count});
    run([&](Pool::Session& session) {
      batch_.clear();
      layer_ = -1;
      for (const Part& part : parts) {
        part.sequence->reserve(part.count);
        batch_.append(part.sequence, part.sequence->length(), part.tokens, part.count);
      }
      batch_.reach(longest);
      batch_.embed(session);
      layer_ = 0;
      stage_ = Stage::project;
    });
  }

  void begin_at(const Tokens& tokens, const Tokens& positions) {
    const auto n = int64_t(tokens.shape(0));
    if (int64_t(positions.shape(0)) != n) refuse("give one position for each token");
    room(n);
    int64_t longest = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (tokens.data()[i] < 0 || tokens.data()[i] >= model_->config().vocab) refuse("a token lies outside the vocabulary");
      if (positions.data()[i] < 0 || positions.data()[i] > 1 << 27) refuse("a position lies outside 0..2^27");
      longest = std::max<int64_t>(longest, positions.data()[i] + 1);
    }
    keep_ = nb::list();
    fed_.clear();
    run([&](Pool::Session& session) {
      batch_.clear();
      layer_ = -1;
      for (int64_t i = 0; i < n; ++i) batch_.append(nullptr, positions.data()[i], tokens.data() + i, 1);
      batch_.reach(longest);
      batch_.embed(session);
      layer_ = 0;
      stage_ = Stage::project;
    });
  }

  // -> q (rows, heads * head_dim), k and v (rows, kv_heads * head_dim), q and k rotated.
  nb::object project() {
    at(Stage::project);
    run([&](Pool::Session& session) { batch_.project(layer_, session); });
    stage_ = Stage::attend;
    const ModelConfig& c = model_->config();
    const int64_t n = batch_.size(), qs = c.heads * c.head_dim, ks = c.kv_heads * c.head_dim;
    float *q, *k, *v;
    nb::object a = array({size_t(n), size_t(qs)}, &q), b = array({size_t(n), size_t(ks)}, &k),
               d = array({size_t(n), size_t(ks)}, &v);
    for (int64_t r = 0; r < n; ++r) {
      std::copy_n(batch_.q(r), qs, q + r * qs);
      std::copy_n(batch_.k(r), ks, k + r * ks);
      std::copy_n(batch_.v(r), ks, v + r * ks);
    }
    return nb::make_tuple(a, b, d);
  }

  void attend() {
    at(Stage::attend);
    if (!batch_.plain()) refuse("this batch has no sequences: give what was attended instead");
    for (const Fed& fed : fed_) {
      if (fed.sequence->length() != fed.length) refuse("a sequence was fed or rewound while its batch was open");
      fed.sequence->reserve(fed.count);  // a rewind to the same length lets go of the room
    }
    run([&](Pool::Session& session) { batch_.attend(layer_, session); });
    stage_ = Stage::mix;
  }

  void attended(const nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>& values) {
    at(Stage::attend);
    const ModelConfig& c = model_->config();
    const int64_t n = batch_.size(), qs = c.heads * c.head_dim;
    if (int64_t(values.shape(0)) != n || int64_t(values.shape(1)) != qs) refuse("what was attended has another shape than q");
    for (int64_t r = 0; r < n; ++r) std::copy_n(values.data() + r * qs, qs, batch_.attended(r));
    stage_ = Stage::mix;
  }

  void mix() {
    at(Stage::mix);
    run([&](Pool::Session& session) { batch_.mix(layer_, session); });
    ++layer_;
    stage_ = Stage::project;
  }

  // Logits of the rows listed; sequences grow by what was fed.
  nb::object finish(const Tokens& rows) {
    if (layer_ != layers()) refuse("a batch is finished after its last layer");
    for (const Fed& fed : fed_)
      if (fed.sequence->length() != fed.length) refuse("a sequence was fed or rewound while its batch was open");
    std::vector<int64_t> wanted;
    for (size_t i = 0; i < rows.shape(0); ++i) {
      if (rows.data()[i] < 0 || rows.data()[i] >= batch_.size()) refuse("a row lies outside the batch");
      wanted.push_back(rows.data()[i]);
    }
    float* logits;
    nb::object result = array({wanted.size(), size_t(model_->config().vocab)}, &logits);
    run([&](Pool::Session& session) { batch_.head(wanted, logits, session); });
    batch_.advance();
    batch_.clear();
    keep_ = nb::list();
    layer_ = -1;
    return result;
  }

  int64_t layer() const { return layer_; }

 private:
  enum class Stage { project, attend, mix };
  struct Fed {
    Sequence* sequence;
    int64_t length, count;
  };

  int64_t layers() const { return int64_t(model_->layers().size()); }
  static void room(int64_t rows) {
    if (rows < 1 || rows > kChunkRows) refuse("a batch has 1 to " + std::to_string(kChunkRows) + " rows");
  }
  void at(Stage stage) const {
    if (layer_ < 0 || layer_ >= layers() || stage_ != stage)
      refuse("out of turn: begin, then project, attend (or attended) and mix for each layer, then finish");
  }
  template <class F> void run(F&& f) {
    const nb::gil_scoped_release release;
    const std::lock_guard lock(model_->busy());
    Pool::Session session(threads_);
    f(session);
  }

  std::shared_ptr<Model> model_;
  Batch batch_;
  nb::list keep_;  // holds on to the sequences in use
  std::vector<Fed> fed_;
  int threads_;
  int64_t layer_ = -1;
  Stage stage_ = Stage::project;
};

void bind(nb::module_& m) {
  m.attr("PAGE_TOKENS") = kPageTokens;
  nb::class_<NativeBlock>(m, "Block");
  nb::class_<NativeSequence>(m, "Sequence")
      .def_prop_ro("length", [](const NativeSequence& s) { return s.sequence->length(); })
      .def_prop_ro("nbytes", [](const NativeSequence& s) { return s.sequence->bytes(); })
      .def("truncate", [](NativeSequence& s, int64_t length) { return s.sequence->truncate(length); }, "length"_a)
      .def("trim", [](NativeSequence& s) { s.sequence->trim(); })
      .def("share", &share, "index"_a)
      .def("adopt", &adopt, "blocks"_a);
  nb::class_<NativeModel>(m, "Model")
      .def_prop_ro("weight_bytes", [](const NativeModel& m) { return m.model->weight_bytes(); })
      .def("read", [](NativeModel& m, int threads) { return m.model->read(threads); }, "threads"_a = 0,
           nb::call_guard<nb::gil_scoped_release>())
      .def("sequence",
           [](const NativeModel& m) { return NativeSequence{std::make_shared<Sequence>(m.model->kv_layout())}; })
      .def_prop_ro("block_bytes",
                   [](const NativeModel& m) {
                     const KVLayout& layout = *m.model->kv_layout();
                     return size_t(layout.layers_of[0] + layout.layers_of[1]) * layout.page_bytes;
                   })
      .def("step", &step, "sequences"_a, "tokens"_a, "offsets"_a, "wanted"_a, "threads"_a = 0);
  nb::class_<Lanes>(m, "Lanes")
      .def("__init__", [](Lanes* at, const NativeModel& model, int threads) { new (at) Lanes(model.model, threads); },
           "model"_a, "threads"_a = 0)
      .def_prop_ro("cores", &Lanes::cores)
      .def("share",
           [](Lanes& self, double first) {
             if (!(first > 0 && first < 1)) refuse("a share lies between 0 and 1");
             self.share(first);
           },
           "first"_a)
      .def("step", &step_lane, "lane"_a, "sequences"_a, "tokens"_a, "offsets"_a, "wanted"_a);
  nb::class_<OpenBatch>(m, "Batch")
      .def(nb::init<const NativeModel&, int>(), "model"_a, "threads"_a = 0)
      .def_prop_ro("layer", &OpenBatch::layer)
      .def("begin", &OpenBatch::begin, "sequences"_a, "tokens"_a, "offsets"_a)
      .def("begin_at", &OpenBatch::begin_at, "tokens"_a, "positions"_a)
      .def("project", &OpenBatch::project)
      .def("attend", &OpenBatch::attend)
      .def("attended", &OpenBatch::attended, "values"_a)
      .def("mix", &OpenBatch::mix)
      .def("finish", &OpenBatch::finish, "rows"_a);
  m.def("make_model", &make, "description"_a);
}

const Binding binding(bind);

}  // namespace
}  // namespace headway
