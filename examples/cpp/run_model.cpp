// Runs a defended model file in C++, without this project's code: run_model MODEL IMAGES C H W
// IMAGES holds little-endian float32 values [N, C, H, W]. Prints labels, flags, members used and abstentions as JSON.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

namespace {

std::vector<float> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string(path) + " cannot be read");
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  const auto* values = reinterpret_cast<const float*>(bytes.data());
  return {values, values + bytes.size() / sizeof(float)};
}

template <typename T>
void print(const char* name, Ort::Value& value, const char* end) {
  const T* values = value.GetTensorData<T>();
  const size_t count = value.GetTensorTypeAndShapeInfo().GetElementCount();
  std::cout << '"' << name << "\": [";
  for (size_t i = 0; i < count; ++i) std::cout << (i ? ", " : "") << +values[i];
  std::cout << ']' << end;
}

int run(char** arguments) {
  std::vector<float> images = read(arguments[2]);
  const int64_t channels = std::stoll(arguments[3]), height = std::stoll(arguments[4]), width = std::stoll(arguments[5]);
  const int64_t count = static_cast<int64_t>(images.size()) / (channels * height * width);
  const std::array<int64_t, 4> shape{count, channels, height, width};

  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "run_model");
  Ort::Session session(env, arguments[1], Ort::SessionOptions{});
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Ort::Value image =
      Ort::Value::CreateTensor<float>(memory, images.data(), images.size(), shape.data(), shape.size());

  const std::array<const char*, 1> inputs{"image"};
  const std::array<const char*, 4> outputs{"label", "adversarial", "members_used", "abstained"};
  auto said = session.Run(Ort::RunOptions{}, inputs.data(), &image, 1, outputs.data(), outputs.size());
  std::cout << '{';
  print<int64_t>(outputs[0], said[0], ", ");
  print<bool>(outputs[1], said[1], ", ");
  print<int64_t>(outputs[2], said[2], ", ");
  print<bool>(outputs[3], said[3], "}\n");
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) {
    std::cerr << "usage: run_model MODEL IMAGES C H W\n";
    return 2;
  }
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    std::cerr << "run_model: " << error.what() << '\n';
    return 1;
  }
}
