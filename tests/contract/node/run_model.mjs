// Runs a defended model file in Node.js: node run_model.mjs MODEL IMAGES C H W
// IMAGES holds little-endian float32 values [N, C, H, W]. Prints labels, flags, members used and abstentions as JSON.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";

const [model, images, ...shape] = process.argv.slice(2);
const [channels, height, width] = shape.map(Number);
const bytes = await readFile(images);
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const session = await ort.InferenceSession.create(model);
const image = new ort.Tensor("float32", values, [values.length / (channels * height * width), channels, height, width]);
const outputs = await session.run({ image });
console.log(
  JSON.stringify({
    label: Array.from(outputs.label.data, Number),
    adversarial: Array.from(outputs.adversarial.data, Boolean),
    members_used: Array.from(outputs.members_used.data, Number),
    abstained: Array.from(outputs.abstained.data, Boolean),
  }),
);
