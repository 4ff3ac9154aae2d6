// The network runs in the page: all that it needs is in the file, and images go nowhere.

// A part of the file, in gzip and base64, as bytes.
async function part(id) {
  const text = atob(document.getElementById(id).textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(inflated).arrayBuffer());
}

const ready = (async () => {
  const [program, binary, model] = await Promise.all(["ort", "wasm", "model"].map(part));
  const ort = await import(URL.createObjectURL(new Blob([program], { type: "text/javascript" })));
  Object.assign(ort.env.wasm, { wasmBinary: binary, numThreads: 1 });
  return { ort, session: await ort.InferenceSession.create(model, { executionProviders: ["wasm"] }) };
})();
ready.catch(() => {}); // told with the first image

// What the network makes of an image: as the server's rows, with the time it took, or {error}.
async function classify(blob) {
  try {
    await ready;
    const began = performance.now();
    const row = await answer(await pixels(blob));
    return { ...row, milliseconds: performance.now() - began };
  } catch (error) {
    return { error: error.message };
  }
}

// Labels and probabilities of an image, uint8 (C, H, W).
async function answer(image) {
  const { ort, session } = await ready;
  const given = new ort.Tensor("uint8", image, [1, ...facts.image_shape]);
  const { logits, known_score: score } = await session.run({ images: given });
  const largest = logits.data.reduce((a, b) => Math.max(a, b));
  const parts = Array.from(logits.data, (logit) => Math.exp(logit - largest));
  const sum = parts.reduce((a, b) => a + b);
  const top = facts.classes.map((label, place) => ({ label, probability: parts[place] / sum }));
  top.sort((a, b) => b.probability - a.probability);
  return { top: top.slice(0, 5), answer: score?.data[0] < facts.threshold ? "none of these" : top[0].label };
}

// An image file as predict reads it, uint8 (C, H, W): upright, without its colour profile, upon white.
async function pixels(blob) {
  const head = new Uint8Array(await blob.slice(0, 25).arrayBuffer());
  if (facts.value_range && head[0] === 0x89 && head[24] === 16)
    throw new Error("this image has 16 bits, of which a browser gives 8: vision_zoo predict reads it");
  const image = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" }).catch(() => {
    throw new Error("this cannot be read as an image");
  });
  const { width, height } = image, rows = Math.min(height, 256), data = new Uint8ClampedArray(4 * width * height);
  const pen = Object.assign(element("canvas"), { width, height: rows }).getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#fff";
  for (let y = 0; y < height; y += rows) { // in pieces: on phones a canvas as large as a photo may stay empty
    pen.fillRect(0, 0, width, rows);
    pen.drawImage(image, 0, -y);
    data.set(pen.getImageData(0, 0, width, Math.min(rows, height - y)).data, 4 * width * y);
  }
  image.close();
  return fitted({ data, width, height });
}

// RGBA of any size brought to the network's shape as PIL does it, gray before anything else: see data/decode.py.
function fitted({ data, width: w, height: h }) {
  const [channels, height, width] = facts.image_shape;
  const plain = new Uint8ClampedArray(w * h * channels);
  for (let i = 0; i < w * h; i++) {
    const at = 4 * i;
    if (channels === 1) plain[i] = (19595 * data[at] + 38470 * data[at + 1] + 7471 * data[at + 2] + 32768) >> 16;
    else for (let c = 0; c < 3; c++) plain[3 * i + c] = data[at + c];
  }
  let [left, top, right, bottom, x, y] = [0, 0, w, h, width, height];
  const ratio = width / height, scale = Math.min(width / w, height / h);
  if (facts.resize === "pad") [x, y] = [Math.max(1, even(w * scale)), Math.max(1, even(h * scale))];
  if (facts.resize === "crop" && w / h > ratio) right = (left = (w - ratio * h) / 2) + ratio * h;
  if (facts.resize === "crop" && w / h < ratio) bottom = (top = (h - w / ratio) / 2) + w / ratio;
  const narrow = resized(plain, h, w, channels, x, left, right);
  const small = resized(narrow, 1, h, x * channels, y, top, bottom);
  const [over, down] = [even((width - x) / 2), even((height - y) / 2)];
  const made = new Uint8Array(channels * height * width);
  for (let i = 0; i < small.length; i++) {
    const [row, column] = [Math.floor(i / channels / x), Math.floor(i / channels) % x];
    made[((i % channels) * height + row + down) * width + column + over] = small[i];
  }
  return made;
}

// A number rounded as Python rounds: halves to the even one.
function even(number) {
  const rounded = Math.round(number);
  return number % 1 === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

// The middle axis of values (outer, length, inner), from..to of it, brought to a size: PIL's filters, which widen where
// they shrink, and its weights, whole numbers of 22 bits. Values are PIL's where it goes across before down;
// where Pillow 13 does not, they are 1 off, and cubic ones more at hard edges of black and white.
function resized(values, outer, length, inner, size, from, to) {
  if (size === length && from === 0 && to === length) return values;
  const cubic = facts.interpolation === "bicubic", [start, end] = [Math.fround(from), Math.fround(to)];
  const scale = Math.fround(end - start) / size, wide = Math.max(scale, 1), support = (cubic ? 2 : 1) * wide;
  const near = cubic ? (x) => (1.5 * x - 2.5) * x * x + 1 : (x) => 1 - x;
  const far = cubic ? (x) => (((x - 5) * x + 8) * x - 4) * -0.5 : () => 0;
  const filter = (x) => (x < 1 ? near(x) : x < 2 ? far(x) : 0);
  const made = new Uint8ClampedArray(outer * size * inner);
  for (let place = 0; place < size; place++) {
    const center = start + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(length, Math.trunc(center + support + 0.5));
    const distance = (i) => Math.abs((i + first - center + 0.5) * (1 / wide));
    const shares = Array.from({ length: last - first }, (_, i) => filter(distance(i)));
    const sum = shares.reduce((a, b) => a + b, 0);
    const weights = shares.map((share) => Math.trunc((share / sum) * 2 ** 22 + 0.5 * Math.sign(share)));
    for (let row = 0; row < outer; row++)
      for (let k = 0; k < inner; k++) {
        let value = 2 ** 21;
        for (let i = 0; i < weights.length; i++) value += weights[i] * values[(row * length + first + i) * inner + k];
        made[(row * size + place) * inner + k] = value >> 22;
      }
  }
  return made;
}
