// Asks a defended model file in a browser, without this project's code: ONNX Runtime as WebAssembly, on one thread.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

// A session of the bytes of a model file.
export async function load(bytes) {
  const session = await ort.InferenceSession.create(bytes);
  if (!session.outputNames.includes("adversarial")) throw new Error("an ONNX model without a defence");
  return session;
}

// What it takes: channels, height and width.
export const size = (session) => session.inputMetadata[0].shape.slice(1);

// Verdicts on images, float32 values [N, C, H, W] in [0, 1]: labels, flags, members used and abstentions.
export async function ask(session, values) {
  const shape = size(session);
  const count = values.length / shape.reduce((product, side) => product * side);
  const outputs = await session.run({ image: new ort.Tensor("float32", values, [count, ...shape]) });
  return {
    label: Array.from(outputs.label.data, Number),
    adversarial: Array.from(outputs.adversarial.data, Boolean),
    members_used: Array.from(outputs.members_used.data, Number),
    abstained: Array.from(outputs.abstained.data, Boolean),
  };
}

// The values of an image file, stretched to the size that the model takes; one channel is its grey.
export async function read(file, [channels, height, width]) {
  const picture = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(picture, 0, 0, width, height);
  const bytes = context.getImageData(0, 0, width, height).data;
  const plane = height * width;
  const values = new Float32Array(channels * plane);
  for (let i = 0; i < plane; i++) {
    const [red, green, blue] = bytes.subarray(4 * i);
    const grey = Math.round(0.299 * red + 0.587 * green + 0.114 * blue);
    (channels === 1 ? [grey] : [red, green, blue]).forEach((byte, channel) => {
      values[channel * plane + i] = byte / 255;
    });
  }
  return values;
}
