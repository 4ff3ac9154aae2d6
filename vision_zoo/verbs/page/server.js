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
