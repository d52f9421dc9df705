// Runs a defended model file in JavaScript: node run_model.mjs MODEL IMAGES C H W [onnxruntime-web]
// IMAGES holds little-endian float32 values [N, C, H, W]. Prints labels, flags, members used and abstentions as JSON.
// onnxruntime-web is what browsers run, as WebAssembly; what it is given there is fetched instead of read.
import { readFile } from "node:fs/promises";

const [model, images, channels, height, width, runtime = "onnxruntime-node"] = process.argv.slice(2);
const ort = await import(runtime);
const bytes = await readFile(images);
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const shape = [channels, height, width].map(Number);
const count = values.length / shape.reduce((product, side) => product * side);
const session = await ort.InferenceSession.create(new Uint8Array(await readFile(model)));
const outputs = await session.run({ image: new ort.Tensor("float32", values, [count, ...shape]) });
console.log(
  JSON.stringify({
    label: Array.from(outputs.label.data, Number),
    adversarial: Array.from(outputs.adversarial.data, Boolean),
    members_used: Array.from(outputs.members_used.data, Number),
    abstained: Array.from(outputs.abstained.data, Boolean),
  }),
);
process.exit(0); // onnxruntime-web's threads would wait for more
