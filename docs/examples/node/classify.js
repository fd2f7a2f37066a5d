// Classify radiographs from Node.js, with @grpc/grpc-js and Triton's own protocol.
//
//   npm ci
//   node classify.js PROTOS 127.0.0.1:8001 chest.png chest.dcm
//
// PROTOS is the folder `protobuf` of github.com/triton-inference-server/common, or what
// `python docs/examples/protos.py PROTOS` writes.
"use strict";

const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const FINDINGS = ["Normal", "Pneumonia", "Uncertain"];
const DEADLINE_S = 10;

// One encoded radiograph for the ensemble; urgent requests overtake those that wait.
function request(image, urgent) {
  const length = Buffer.alloc(4); // each element of a BYTES tensor: its length, little-endian, then itself
  length.writeUInt32LE(image.length);
  return {
    modelName: "xray_classifier",
    inputs: [{ name: "encoded", datatype: "BYTES", shape: [1, 1] }],
    outputs: [{ name: "probability" }, { name: "decision" }],
    parameters: {
      priority: { uint64Param: urgent ? 1 : 2 },
      timeout: { int64Param: DEADLINE_S * 1e6 }, // in the queue, microseconds
    },
    rawInputContents: [Buffer.concat([length, image])],
  };
}

// The contents are in the order of `outputs`, little-endian.
function answer(response) {
  const raw = new Map(response.outputs.map((tensor, i) => [tensor.name, response.rawOutputContents[i]]));
  return {
    finding: FINDINGS[raw.get("decision").readInt32LE(0)],
    probability: raw.get("probability").readFloatLE(4), // of pneumonia, the second label
  };
}

function classify(client, file) {
  return new Promise((resolve) => {
    const deadline = new Date(Date.now() + DEADLINE_S * 1000);
    client.ModelInfer(request(fs.readFileSync(file), false), { deadline }, (error, response) => {
      if (error) {
        resolve({ file, error: `${grpc.status[error.code]}: ${error.details}` });
      } else {
        resolve({ file, ...answer(response) });
      }
    });
  });
}

async function main([protos, url, ...files]) {
  const definition = loader.loadSync("grpc_service.proto", { includeDirs: [protos], longs: Number });
  const { inference } = grpc.loadPackageDefinition(definition);
  const client = new inference.GRPCInferenceService(url, grpc.credentials.createInsecure());
  let failed = false;
  for (const file of files) {
    const result = await classify(client, file);
    failed ||= "error" in result;
    console.log(JSON.stringify(result));
  }
  client.close();
  process.exitCode = failed ? 1 : 0;
}

main(process.argv.slice(2));
