// What the network makes of an image: a row of the answer, or {error}.
async function classify(blob) {
  try {
    const response = await fetch("predict", { method: "POST", body: blob, headers: { "Content-Type": "image/any" } });
    const answer = await response.json();
    return response.ok ? answer.predictions[0] : answer;
  } catch {
    return { error: "the server does not answer" };
  }
}

// A picture of where the network looked in an image, or {error}.
async function explain(blob) {
  try {
    const response = await fetch("explain", { method: "POST", body: blob, headers: { "Content-Type": "image/any" } });
    return response.ok ? await response.blob() : await response.json();
  } catch {
    return { error: "the server does not answer" };
  }
}
