// The value that a field of each request is set to.
function value(r) {
  return r.method ? "0123456789abcdef" : "";
}

export default { value };
