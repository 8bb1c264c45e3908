var d=Object.create;var u=Object.defineProperty;var p=Object.getOwnPropertyDescriptor;var k=Object.getOwnPropertyNames;var T=Object.getPrototypeOf,_=Object.prototype.hasOwnProperty;var x=(t,r)=>()=>{try{return r||t((r={exports:{}}).exports,r),r.exports}catch(e){throw r=0,e}};var f=(t,r,e,o)=>{if(r&&typeof r=="object"||typeof r=="function")for(let s of k(r))!_.call(t,s)&&s!==e&&u(t,s,{get:()=>r[s],enumerable:!(o=p(r,s))||o.enumerable});return t};var a=(t,r,e)=>(e=t!=null?d(T(t)):{},f(r||!t||!t.__esModule?u(e,"default",{value:t,enumerable:!0}):e,t));var n=x(l=>{"use strict";/**
 * @license React
 * react-jsx-runtime.production.js
 *
 * Copyright (c) Meta Platforms, Inc. and affiliates.
 *
 * This source code is licensed under the MIT license found in the
 * LICENSE file in the root directory of this source tree.
 */var m=Symbol.for("react.transitional.element"),A=Symbol.for("react.fragment");function E(t,r,e){var o=null;if(e!==void 0&&(o=""+e),r.key!==void 0&&(o=""+r.key),"key"in r){e={};for(var s in r)s!=="key"&&(e[s]=r[s])}else e=r;return r=e.ref,{$$typeof:m,type:t,key:o,ref:r!==void 0?r:null,props:e}}l.Fragment=A;l.jsx=E;l.jsxs=E});var j=x((R,i)=>{"use strict";i.exports=n()});var v=a(j());import{Fragment as M}from"./react.js";var export_jsx=v.jsx;var export_jsxs=v.jsxs;export{M as Fragment,export_jsx as jsx,export_jsxs as jsxs};
