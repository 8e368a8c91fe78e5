(async () => {
  const packed = atob(document.getElementById("page").textContent);
  const bytes = Uint8Array.from(packed, character => character.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const html = await new Response(unpacked).text();
  document.open();
  document.write(html);
  document.close();
})();
