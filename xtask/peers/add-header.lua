-- Sets one field in each request.
function envoy_on_request(handle)
  handle:headers():replace("x-bench", "0123456789abcdef")
end
