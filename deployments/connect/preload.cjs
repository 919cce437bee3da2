// Makes Node programs reach the end point of `svd-serve connect`; Node loads it first, by NODE_OPTIONS.
//
// Node's fetch, its https module and the ws package know no proxy variable, but all of them open a connection by
// calling tls.connect, and look it up when they do. So a connection to port 443 of one of fal's hosts goes to our
// end point instead. The server's name stays, and with it the check of its certificate (NODE_EXTRA_CA_CERTS).
"use strict";

const { syncBuiltinESMExports } = require("node:module");
const tls = require("node:tls");

const { SVD_CONNECT_TO: to = "", SVD_CONNECT_HOSTS: hosts = "" } = process.env;
const [, address, port] = /^\[?(.*?)\]?:(\d+)$/.exec(to) ?? [];
const redirected = new Set(hosts.split(",").filter(Boolean));
const connect = tls.connect;

// tls.connect(options[, callback]), tls.connect(port[, host][, options][, callback])
function optionsOf(args) {
  const [first, second] = args;
  const options = typeof first === "object" ? {} : { port: first };
  if (typeof second === "string") options.host = second;
  return Object.assign(options, ...args.filter((arg) => typeof arg === "object"));
}

if (address) {
  tls.connect = function (...args) {
    const options = optionsOf(args);
    const host = String(options.host ?? "").toLowerCase();
    if (!redirected.has(host) || Number(options.port) !== 443 || options.socket) return connect.apply(this, args);
    const callback = args.find((arg) => typeof arg === "function");
    return connect.call(this, { ...options, host: address, port, servername: options.servername || host }, callback);
  };
  syncBuiltinESMExports(); // for those who import { connect } from "node:tls"
}
